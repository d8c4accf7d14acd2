"""Small text files that stand where weights should be: pointers of Git LFS, web pages, lists of shards."""

from __future__ import annotations

from pathlib import Path


def stand_in(path: str | Path) -> str | None:
    """What a file is in place of weights, and what to do; None where it is no such thing or cannot be read."""
    try:
        with open(path, "rb") as fh:
            head = fh.read(512).lstrip().lower()
    except OSError:
        return None
    if b"\0" in head:  # no text: the length that safetensors begin with may look like a brace
        return None
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS, not the file it stands for; run `git lfs pull`, or download the file itself"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, saved under this name (of a login, or an error); download the file itself"
    if head.startswith((b"{", b"[")):
        return "a text of JSON, no tensors; download the weights themselves"
    return None
