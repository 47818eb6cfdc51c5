"""A standard sentence-transformers training script: question and passage pairs, one epoch after the other."""

import sys

from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

base, rows, out = sys.argv[1:4]
model = SentenceTransformer(base)
data = load_dataset("json", data_files=rows, split="train").train_test_split(0.2, seed=0)
arguments = SentenceTransformerTrainingArguments(
    output_dir=out,
    num_train_epochs=30,
    learning_rate=2e-5,
    per_device_train_batch_size=32,
    eval_strategy="epoch",
    save_strategy="no",
    report_to="none",
)
trainer = SentenceTransformerTrainer(
    model,
    args=arguments,
    train_dataset=data["train"],
    eval_dataset=data["test"],
    loss=MultipleNegativesRankingLoss(model),
)
trainer.train()
model.save_pretrained(out)
