"""The stages of a preparation. Each reads what the one before left in the work folder, and writes its own there; none changes a
file that is there in full, so a stage that was killed goes on where it was.

| stage | per part of about 16 MB of text | for the whole corpus |
|---|---|---|
| documents | cleaned and filtered documents, their ledger | what the readers dropped |
| duplicates | signatures, in memory | hashes of the ids to drop, report |
| tokenizer | a sample of the texts, in memory | tokenizer.json |
| tokens | ids and lengths of the documents that are kept, by split | |
| shards | | shards in the dataset's folder, their records |
"""

STAGES = ("documents", "duplicates", "tokenizer", "tokens", "shards")
