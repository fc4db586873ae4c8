"""What an agent took in and did upon it, written down so that it can be gone through again.

`recorder` writes the lines, `lines` reads them, `replay` feeds them into the machines as they are
in this version; `values` says how events, effects and the machines' states look in JSON.
"""
