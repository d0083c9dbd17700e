"""The cells of the family `recurrent`: one step forward, and its gradient by hand.

A cell sees, per head and channel, `x` (the gates' preactivations from the input) and `r` (those from the last output, h R + b),
both `[..., gates, V]`, and its state, whose first entry is the output h. A state of zeros is the one before a document.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

States = tuple[Tensor, ...]


class Cell:
    """gates: preactivations per channel. states: names, h first."""

    gates: int
    states: tuple[str, ...]

    def step(self, x: Tensor, r: Tensor, state: States) -> tuple[States, States]:
        """(new state, what `back` wants to know)."""
        raise NotImplementedError

    def back(self, saved: States, dstate: States) -> tuple[Tensor, Tensor, States]:
        """(dx, dr, gradient of the state before); the last does not yet hold what flows through r into h."""
        raise NotImplementedError


def _dsigmoid(d: Tensor, s: Tensor) -> Tensor:
    return d * s * (1 - s)


def _dtanh(d: Tensor, t: Tensor) -> Tensor:
    return d * (1 - t * t)


class LSTM(Cell):
    """Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000); gates in PyTorch's order i, f, g, o.

    c = sigmoid(f) c + sigmoid(i) tanh(g)        h = sigmoid(o) tanh(c)
    """

    gates = 4
    states: tuple[str, ...] = ("h", "c")

    def step(self, x: Tensor, r: Tensor, state: States) -> tuple[States, States]:
        i, f, g, o = (x + r).unbind(-2)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * state[1] + i * g
        tanh_c = c.tanh()
        return (o * tanh_c, c), (i, f, g, o, tanh_c, state[1])

    def back(self, saved: States, dstate: States) -> tuple[Tensor, Tensor, States]:
        i, f, g, o, tanh_c, c_before = saved
        dh, dc = dstate
        dc = dc + _dtanh(dh * o, tanh_c)
        da = [_dsigmoid(dc * g, i), _dsigmoid(dc * c_before, f), _dtanh(dc * i, g), _dsigmoid(dh * tanh_c, o)]
        dx = torch.stack(da, -2)
        return dx, dx, (torch.zeros_like(dh), dc * f)


class GRU(Cell):
    """Cho et al., arXiv:1406.1078, in PyTorch's form (the reset gate acts on the recurrent product); gates r, z, n.

    n = tanh(x_n + sigmoid(r) r_n)        h = (1 - sigmoid(z)) n + sigmoid(z) h
    """

    gates = 3
    states: tuple[str, ...] = ("h",)

    def step(self, x: Tensor, r: Tensor, state: States) -> tuple[States, States]:
        reset, z = (x + r)[..., :2, :].sigmoid().unbind(-2)
        r_n = r[..., 2, :]
        n = (x[..., 2, :] + reset * r_n).tanh()
        return (n + z * (state[0] - n),), (reset, z, n, r_n, state[0])

    def back(self, saved: States, dstate: States) -> tuple[Tensor, Tensor, States]:
        reset, z, n, r_n, h_before = saved
        (dh,) = dstate
        dn = _dtanh(dh * (1 - z), n)
        da = [_dsigmoid(dn * r_n, reset), _dsigmoid(dh * (h_before - n), z)]
        return torch.stack([*da, dn], -2), torch.stack([*da, dn * reset], -2), (dh * z,)


class SLSTM(Cell):
    """sLSTM (xLSTM, arXiv:2405.04517 eqs. 8-17) with sigmoid forget and exponential input gates; gates i, f, z, o.

        c = f c + e^i tanh(z)      n = f n + e^i      h = sigmoid(o) c / n      f = sigmoid(f)

    c and n are kept times exp(-m), m = max(log f + m, i) (eq. 15), on which h does not depend. Where n is 0 nothing lies behind,
    and m = i: as in the published code, which writes it as a case of the first step.
    """

    gates = 4
    states: tuple[str, ...] = ("h", "c", "n", "m")

    def step(self, x: Tensor, r: Tensor, state: States) -> tuple[States, States]:
        i, f, z, o = (x + r).unbind(-2)
        _, c_before, n_before, m_before = state
        kept = (F.logsigmoid(f) + m_before).masked_fill(n_before == 0, -torch.inf)
        m = torch.maximum(kept, i)
        forget, write = (kept - m).exp(), (i - m).exp()
        z, o = z.tanh(), o.sigmoid()
        c, n = forget * c_before + write * z, forget * n_before + write
        ratio = c / n
        saved = (forget, write, z, o, ratio, n, c_before, n_before, f, kept >= i)
        return (o * ratio, c, n, m), saved

    def back(self, saved: States, dstate: States) -> tuple[Tensor, Tensor, States]:
        forget, write, z, o, ratio, n, c_before, n_before, f, keeps = saved
        dh, dc, dn, dm = dstate
        dratio = dh * o / n
        dc, dn = dc + dratio, dn - dratio * ratio
        dkept, di = (dc * c_before + dn * n_before) * forget, (dc * z + dn) * write
        dm = dm - dkept - di
        dkept, di = dkept + dm * keeps, di + dm * ~keeps
        da = [di, dkept * (-f).sigmoid(), _dtanh(dc * write, z), _dsigmoid(dh * ratio, o)]
        dx = torch.stack(da, -2)
        return dx, dx, (torch.zeros_like(dh), dc * forget, dn * forget, dkept)


CELLS: dict[str, Cell] = {"lstm": LSTM(), "gru": GRU(), "slstm": SLSTM()}
