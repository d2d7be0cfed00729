"""A simulated fleet: the shipped policies, breakers, retries and calls against modelled servers, in virtual time.

    from clientlb import Options
    from clientlb.simulation import SCENARIOS, simulate

    result = simulate(SCENARIOS["harsh"].points["100x100"], seed=1, options=Options(policy="least_time"))
    print(result.quantile(0.99), result.lost, result.attempts_per_call)

Nothing of the library is faked but the network: every client is a `Balancer` with the clock of the simulation and a
generator of random numbers of its own, and every call is the generator of `clientlb.call`. One seed is one run, equal
to the last bit. 25 seconds of 100 clients and 100 servers take about ten seconds of one core.

General layout: `loop` has the virtual clock, `server` and `client` are the two ends of a call, `setting` says what a
fleet is made of, `incidents` what goes wrong in it, `world` brings it to life, `record` has what happened, `scenarios`
the list of experiments, `plot` pictures of them. `clientlb simulate` is the command.
"""

from clientlb.simulation.record import Moment, Result
from clientlb.simulation.scenarios import SCENARIOS, Scenario
from clientlb.simulation.server import Condition, Server
from clientlb.simulation.setting import HARSH, MID, MILD, ClippedNormal, Exponential, Setting, Steady, Work
from clientlb.simulation.world import Seat, Seated, World, simulate

__all__ = [
    "HARSH",
    "MID",
    "MILD",
    "SCENARIOS",
    "ClippedNormal",
    "Condition",
    "Exponential",
    "Moment",
    "Result",
    "Scenario",
    "Seat",
    "Seated",
    "Server",
    "Setting",
    "Steady",
    "Work",
    "World",
    "simulate",
]
