"""Search a folder of Markdown with two models side by side: LangChain embeds, Chroma finds.

    nexus-client export ./base --model base
    nexus-client export ./ours
    python retriever.py /srv/handbook ./base ./ours "the machine kept my card"

It needs langchain-huggingface and chromadb, and no NEXUS.  Each section of a document is one passage.
"""

import re
import sys
from pathlib import Path

import chromadb
from langchain_huggingface import HuggingFaceEmbeddings

SHOWN = 3


def sections(folder: Path) -> dict[str, str]:
    """Each section under a heading, by file and heading."""
    found = {}
    for file in sorted(folder.rglob("*.md")):
        for part in re.split(r"^(?=#)", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            heading, _, body = part.partition("\n")
            if body.strip():
                found[f"{file.name}: {heading.lstrip('# ')}"] = body.strip()
    return found


def search(passages: dict[str, str], model: str, question: str) -> list[tuple[str, float]]:
    """The passages that a model finds nearest, with their cosine."""
    embeddings = HuggingFaceEmbeddings(model_name=model)
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    index = client.create_collection(f"passages-{Path(model).name}", metadata={"hnsw:space": "cosine"})
    index.add(ids=list(passages), embeddings=embeddings.embed_documents(list(passages.values())))
    found = index.query(query_embeddings=[embeddings.embed_query(question)], n_results=SHOWN)
    return [(name, 1 - distance) for name, distance in zip(found["ids"][0], found["distances"][0], strict=True)]


def main() -> None:
    """Print what each model finds."""
    folder, *models, question = sys.argv[1:]
    passages = sections(Path(folder))
    print(f"{len(passages)} passages; {question}")
    for model in models:
        print(f"\n{model}")
        for name, cosine in search(passages, model, question):
            print(f"  {cosine:.3f}  {name}")


if __name__ == "__main__":
    main()
