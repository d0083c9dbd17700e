"""Parametric forms: published ones give their published optima, gradients are those of the values, and forms contain each other."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize_scalar

from benchmarks.scaling import CHINCHILLA, KAPLAN, REPEATED, REPLICATION
from eval.scaling.cost_law import CostLaw, fit_cost
from eval.scaling.forms import FORMS, Chinchilla, DataConstrained, Kaplan, OverTraining, Points, effective

# arXiv:2203.15556: Gopher's compute
GOPHER = np.log(5.76e23)
SIX = CostLaw()


def points(N, D, U=None) -> Points:
    N, D = np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float))
    return Points(np.log(N), np.log(D), np.log(6 * N * D), np.log(D if U is None else np.minimum(U, D)))


def loss(form, theta, x: Points) -> np.ndarray:
    return np.exp(form.curve(theta[None], x)[0][0])


def optimum(form, theta, log_cost, law=SIX):
    return [float(np.exp(log[0])) for log in form.optimum(theta[None], log_cost, law)]


def test_chinchilla_has_its_published_loss_and_optimum():
    # 1.69 + 0.083 + 0.163 at 70B parameters and 1.4T tokens
    assert loss(Chinchilla(), CHINCHILLA, points(70e9, 1.4e12))[0] == pytest.approx(1.69 + 0.0836 + 0.1636, abs=1e-3)
    N = [optimum(Chinchilla(), CHINCHILLA, GOPHER + k)[0] for k in (0, 1)]
    # table 2, approach 3: a = 0.46, b = 0.54; figure 4: 40B parameters for Gopher's compute; parameters are published to two digits
    assert np.log(N[1] / N[0]) == pytest.approx(0.46, abs=0.01)
    assert N[0] == pytest.approx(40e9, rel=0.25)


def test_the_replication_has_twenty_tokens_per_parameter():
    N, D = optimum(Chinchilla(), REPLICATION, GOPHER)
    # arXiv:2404.10102: N ~ C^0.512, about 20 tokens per parameter
    assert pytest.approx(20, rel=0.3) == D / N
    assert np.log(optimum(Chinchilla(), REPLICATION, GOPHER + 1)[0] / N) == pytest.approx(0.512, abs=2e-3)


def test_kaplan_needs_five_thousand_tokens_times_parameters_to_the_0_74():
    """arXiv:2001.08361, eq. 4.4: with that many tokens overfitting costs about 2 % of the loss of unlimited ones."""
    N = np.geomspace(1e7, 1e10, 4)
    limited, unlimited = (loss(Kaplan(), KAPLAN, points(N, D)) for D in (5e3 * N**0.74, np.full(4, 1e30)))
    assert limited / unlimited - 1 == pytest.approx(np.full(4, 0.02), abs=0.004)
    assert {k: float(v[0]) for k, v in Kaplan().values(KAPLAN[None]).items()} == pytest.approx(
        {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
    )


def test_repeated_tokens_have_their_published_worth():
    """arXiv:2305.16264: R_D* = 15.4, R_N* = 5.3, U_N = 0.051 U_D (eq. 17)."""
    values = {name: float(value[0]) for name, value in DataConstrained().values(REPEATED[None]).items()}
    assert (values["R_D"], values["R_N"]) == pytest.approx((15.387756, 5.309743))
    assert (values["A"], values["B"], values["E"]) == pytest.approx((521, 1488, 1.87), abs=1)
    enough, _ = DataConstrained()._parameters_for(np.log([1e9]), *(REPEATED[k] for k in (0, 1, 3, 4)))
    assert np.exp(enough[0]) == pytest.approx(0.051 * 1e9, rel=0.01)
    # four epochs are nearly as good as new tokens; more than 1 + R_D* times the unique ones nothing is worth
    unique, rate = np.log([1e9]), REPEATED[5]
    worth = [float(np.exp(effective(unique + np.log(epochs), unique, rate)[0][0] - unique[0])) for epochs in (1, 4, 1e4)]
    assert worth == pytest.approx([1, 1 + 15.387756 * (1 - np.exp(-3 / 15.387756)), 16.387756], rel=1e-6)
    assert worth[1] > 0.9 * 4


def test_scarce_tokens_make_models_smaller_and_epochs_more():
    """arXiv:2305.16264, sec. 6: with 9.3e21 FLOPs and 25B unique tokens 6.34B parameters for 242B tokens, not 8.67B for 178B."""
    N, D = (float(np.exp(v[0])) for v in DataConstrained().constrained_optimum(REPEATED[None], np.log(9.3e21), SIX, 25e9))
    # they are models that were trained, next to the optimum of the law
    assert pytest.approx((6.34e9, 242e9), rel=0.1) == (N, D)
    assert optimum(DataConstrained(), REPEATED, np.log(9.3e21)) == pytest.approx((8.67e9, 178e9), rel=0.1)


THETAS = {"chinchilla": CHINCHILLA, "kaplan": KAPLAN, "over_training": np.array([5.0, 6, 0.5, 0.16]), "data_constrained": REPEATED}


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_those_of_the_values(name):
    rng = np.random.default_rng(0)
    N, M = np.exp(rng.uniform(np.log(1e7), np.log(1e10), 12)), np.exp(rng.uniform(0, 5, 12))
    # from one epoch to a hundred, and sizes on both sides of U_N
    x = points(N, N * M, N * M / np.exp(rng.uniform(0, np.log(100), 12)))
    theta = THETAS[name] * rng.uniform(0.9, 1.1, len(THETAS[name]))
    _, gradient = FORMS[name].curve(theta[None], x)
    for k in range(12):
        one = Points(*(np.array([values[k]]) for values in (x.N, x.D, x.C, x.U)))
        numeric = approx_fprime(theta, lambda t, one=one: FORMS[name].curve(t[None], one)[0][0, 0], 1e-7)
        assert gradient[0, :, k] == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_forms_contain_each_other():
    N, D = np.geomspace(1e8, 1e10, 5), np.geomspace(3e10, 1e12, 5)
    x = points(N, D)
    # no token twice, no size above U_N: Chinchilla's
    assert loss(DataConstrained(), REPEATED, x) == pytest.approx(loss(Chinchilla(), REPEATED[:5], x), rel=1e-12)
    # alpha = beta: arXiv:2403.08540, sec. 2, with eta = alpha / 2, a = A 6^eta, b = B 6^eta
    a, b, e, alpha, _ = REPEATED[:5]
    over = np.array([a + alpha / 2 * np.log(6), b + alpha / 2 * np.log(6), e, alpha / 2])
    assert loss(OverTraining(), over, x) == pytest.approx(loss(Chinchilla(), REPEATED[:5], x), rel=1e-12)
    assert optimum(OverTraining(), over, GOPHER) == pytest.approx(optimum(Chinchilla(), REPEATED[:5], GOPHER), rel=1e-9)


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
@pytest.mark.parametrize("law", [SIX, CostLaw(float(np.log(40)), 0.93)], ids=["6ND", "40N^0.93D"])
def test_optima_are_the_least_losses_of_their_cost(name, law):
    form, theta = FORMS[name], THETAS[name]

    def at(n: float) -> float:
        D = GOPHER - law.log_k - law.q * n
        return form.curve(theta[None], Points(*(np.array([v]) for v in (n, D, GOPHER, D))))[0][0, 0]

    found = minimize_scalar(at, bounds=(15, 35), method="bounded", options={"xatol": 1e-9}).x
    assert np.log(optimum(form, theta, GOPHER, law)[0]) == pytest.approx(found, abs=1e-5)


def test_a_cost_law_is_recovered_and_says_how_far_off_it_is():
    N, D = np.log(np.geomspace(1e7, 1e10, 6)), np.log(np.geomspace(1e9, 1e10, 6))
    exact = fit_cost(N, D, np.log(40) + 0.93 * N + D)
    assert (exact.log_k, exact.q, exact.worst) == pytest.approx((np.log(40), 0.93, 0), abs=1e-9)
    off = np.zeros(6)
    off[2] = np.log(1.2)
    assert 0.1 < fit_cost(N, D, np.log(6) + N + D + off).worst < 0.2
    assert fit_cost(N[:1].repeat(3), D[:3], N[0] + D[:3]).q == 1
