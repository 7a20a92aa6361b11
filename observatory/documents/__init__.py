"""State that is kept beside the stack: the rollout document, the access document and the journal.

`rollout` and `logins` define the documents; `document_file` reads and writes them as files, and
`observatory.platforms.aws.documents` does in S3.
"""
