"""The same script with a frozen encoder, a dendritic adapter on it, and dendrites that have to earn their place."""

import sys

from datasets import load_dataset
from nexus_client.growing import DendriteGrowth, attach
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

base, rows, out = sys.argv[1:4]
model = SentenceTransformer(base)
attach(model)
data = load_dataset("json", data_files=rows, split="train").train_test_split(0.2, seed=0)
arguments = SentenceTransformerTrainingArguments(
    output_dir=out,
    num_train_epochs=30,
    learning_rate=1e-3,
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
    callbacks=[DendriteGrowth()],
)
trainer.train()
model.save_pretrained(out)
