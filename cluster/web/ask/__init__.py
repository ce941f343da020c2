"""The page of a team that is served: what people say, write or record goes to the API of `cluster.serving`.

``page/`` shows who does what while the team works, the answer, and what it would be without a part of the input.
"""
