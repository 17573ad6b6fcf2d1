"""The explorer's payload read again, and the page's arithmetic in numpy."""

import base64
import gzip
import json

import numpy as np


def unpack(text: str):
    """Give header and arrays of a payload."""
    whole = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(whole[:4], "little")
    header, body = json.loads(whole[4 : 4 + length]), whole[4 + length :]
    arrays = {}
    for name, (kind, shape, offset) in header["arrays"].items():
        assert offset % 4 == 0  # or a browser cannot lay a typed array over it
        size = int(np.prod(shape))
        arrays[name] = np.frombuffer(body, "<" + kind, size, offset).reshape(shape)
    return header, arrays


def selu(x):
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))


def decode(header, arrays, rows, batches):
    """Give xhat of some cells, each in a batch (-1: none), in the scaled unit: what web/src/decoder.ts computes."""
    h = arrays["latent"][rows].astype(np.float32)
    known = (np.asarray(batches) >= 0)[:, None]
    last = len(header["whatif"]["pre_selu"]) - 1
    for i, pre_selu in enumerate(header["whatif"]["pre_selu"]):
        w, b, s, t, gamma, beta = (
            arrays[f"{n}{i}"].astype(np.float32) for n in ("w", "b", "s", "t", "gamma", "beta")
        )
        h = h @ w + b
        h = (selu(h) if pre_selu else h) * s + t
        h = h * (1 + known * gamma[batches]) + known * beta[batches]
        h = h if i == last else selu(h)
    return h


def gene(arrays, g, n_cells):
    """Give a measured gene of all cells, as web/src/genes.ts reads it."""
    found, cell, at = np.zeros(n_cells, np.float32), 0, int(arrays["gene_byte"][g])
    for i in range(arrays["gene_start"][g], arrays["gene_start"][g + 1]):
        while arrays["gene_cells"][at] == 255:
            cell, at = cell + 255, at + 1
        cell, at = cell + int(arrays["gene_cells"][at]), at + 1
        found[cell] = arrays["gene_values"][i] * arrays["gene_most"][g] / 255
    return found
