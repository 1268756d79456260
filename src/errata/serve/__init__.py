"""`errata serve`: a model that answers over HTTP, and is corrected while it does.

`engine` answers in batches and changes the model between them; `ledger` keeps every change,
durably; `app` is the HTTP interface of both, OpenAI's and errata's own; `keys` says who may do
what.
"""
