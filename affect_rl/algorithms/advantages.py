"""From rewards to advantages: one function an estimator. Tensors in, tensors out.

Shapes are those of `affect_rl.algorithms.step.Step`: R tokens, N turns, C chains, A agents. All of these estimators
look at the whole step, on every rank alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from affect_rl.algorithms.step import Step, sum_by

EPSILON = 1e-8


def token_rewards(step: Step, kl_weight: float) -> Tensor:
    """Rewards ``[R]``: ``-beta log(pi_old / pi_ref)`` at each token, plus the reward of a turn at its last.

    Equation 10 of the paper (arXiv 2604.12735), with as many turns as an agent has.
    """
    per_token = -kl_weight * (step.old - step.reference)
    return per_token.index_add(0, step.turn_lengths.cumsum(0) - 1, step.rewards.to(per_token))


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation along each chain by itself (arXiv 1506.02438, equation 16).

    ``A_t = sum_l (gamma lam)^l delta_{t+l}``, ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``; V = 0 after a chain's
    last token. The state after the last token of a turn is the one before the first token of the agent's next turn.

    Args:
        rewards: ``[R]`` reward of each token.
        values: ``[R]`` value of the state that predicts each token.
        lengths: ``[C]`` tokens of each chain.
        gamma: discount per token.
        lam: lambda; 0 for one-step differences, 1 for Monte Carlo returns less values.

    Returns:
        ``[R]`` advantages.
    """
    real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # [C, T]
    r, v = (torch.zeros(real.shape, device=x.device, dtype=x.dtype).masked_scatter(real, x) for x in (rewards, values))
    padded = torch.zeros_like(v)
    ahead, next_value = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
    # Padding stands at the end and holds zeros, so nothing flows out of it into real tokens.
    for t in range(real.shape[1] - 1, -1, -1):
        ahead = r[:, t] + gamma * next_value - v[:, t] + gamma * lam * ahead
        padded[:, t], next_value = ahead, v[:, t]
    return padded[real]


def returns_to_go(rewards: Tensor, lengths: Tensor, gamma: float = 1.0) -> Tensor:
    """``G_t = sum_l gamma^l r_{t+l}`` along each chain (or any other runs of these lengths), ``[R]``."""
    return gae(rewards, torch.zeros_like(rewards), lengths, gamma, 1.0)


def group_relative(scores: Tensor, groups: Tensor, *, scale: bool) -> Tensor:
    """GRPO (arXiv 2402.03300, section 4.1.2): ``A_i = (R_i - mean(R)) / std(R)`` over the group; alone in it: 0.

    Args:
        scores: ``[n]`` R_i.
        groups: ``[n]`` index of each one's group.
        scale: divide by the deviation; False as Dr. GRPO has it (arXiv 2503.20783), which finds that it favours
            groups of nearly equal scores.
    """
    count = int(groups.max()) + 1
    sizes = sum_by(torch.ones_like(scores), groups, count).clamp(min=1)
    centred = scores - (sum_by(scores, groups, count) / sizes)[groups]
    if not scale:
        return centred
    deviation = (sum_by(centred**2, groups, count) / sizes).sqrt()
    # Scores that are equal up to rounding would become advantages of size one.
    return torch.where(deviation > 1e-6, 1 / (deviation + EPSILON), 0)[groups] * centred


def leave_one_out(scores: Tensor, groups: Tensor) -> Tensor:
    """RLOO (arXiv 2402.14740, section 3.2): ``A_i = R_i - mean_{j != i} R_j`` over the group; alone in it: 0.

    Args:
        scores: ``[n]`` R_i.
        groups: ``[n]`` index of each one's group.
    """
    count = int(groups.max()) + 1
    sizes = sum_by(torch.ones_like(scores), groups, count)[groups]
    others = (sum_by(scores, groups, count)[groups] - scores) / (sizes - 1).clamp(min=1)
    return torch.where(sizes > 1, scores - others, torch.zeros_like(scores))


def normalise(advantages: Tensor, agent: Tensor) -> Tensor:
    """Shift and scale each agent's advantages to mean 0 and standard deviation 1 over the whole step.

    Agents differ in reward scale and answer length; normalised together, one would drown the others.

    Args:
        advantages: ``[n]``, of tokens or turns.
        agent: ``[n]`` whose they are.
    """
    return group_relative(advantages, agent, scale=True)


def in_units_of_returns(advantages: Tensor, returns: Tensor, agent: Tensor) -> Tensor:
    """Shift each agent's advantages to mean 0 and divide them by the standard deviation of its returns, over the step.

    Agents become comparable, as by `normalise`, and a critic keeps its use: divided by their own deviation, advantages
    of which it has explained all but noise would be noise of deviation 1. Where the critic is so wrong that advantages
    vary more than returns, they are divided by their own deviation.

    Args:
        advantages: ``[R]``.
        returns: ``[R]``.
        agent: ``[R]`` whose they are.
    """
    count = int(agent.max()) + 1
    tokens = sum_by(torch.ones_like(returns), agent, count).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        return x - (sum_by(x, agent, count) / tokens)[agent]

    spread = torch.stack([sum_by(centred(x) ** 2, agent, count) for x in (returns, advantages)]).amax(0)
    deviation = (spread / tokens).sqrt()
    return torch.where(deviation > 1e-6, 1 / (deviation + EPSILON), 0)[agent] * centred(advantages)


def mixed(step: Step, gamma: float, mix: float) -> Tensor:
    """MAPO (arXiv 2603.06194): turn-level and batch-level advantages of each turn, mixed; no critic. ``[R]``.

    ``A_n = mix * A_turn + (1 - mix) * A_batch``. A_turn is the return from the turn on, ``G_n = sum_l gamma^l r_{n+l}``
    along the chain, standardised over the copies of the sample at the same turn of the same agent. A_batch is the
    turn's own reward, standardised over the same turn of the same agent in the whole step: it still tells a good turn
    from a bad one where all copies ended alike. Among turns of other numbers every early one, whose reward is 0, would
    look bad.

    The paper's text was not at hand: written after its abstract and two descriptions of it by others, which give the
    normalisations and ``mix = 0.5``. Both parts are standardised for each agent by itself, as everything here is.
    """
    turns = torch.bincount(step.chain, minlength=len(step.episode))
    returns = returns_to_go(step.rewards, turns, gamma)
    place = step.turn_number * len(step.agents) + step.turn_agent  # which turn of which agent
    by_turn = group_relative(returns, step.sample[step.chain] * (int(place.max()) + 1) + place, scale=True)
    by_batch = group_relative(step.rewards, place, scale=True)
    return (mix * by_turn + (1 - mix) * by_batch)[step.turn]


def explained_variance(values: Tensor, returns: Tensor, agent: Tensor, agents: int) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)`` of each agent, ``[A]``; 0 where returns do not vary."""

    def variance(x: Tensor) -> Tensor:
        count = sum_by(torch.ones_like(x), agent, agents).clamp(min=1)
        return sum_by((x - (sum_by(x, agent, agents) / count)[agent]) ** 2, agent, agents) / count

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total.clamp(min=1e-12), torch.zeros_like(total))
