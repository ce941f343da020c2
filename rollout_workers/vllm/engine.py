"""A vLLM engine that hundreds of coroutines share: whoever needs tokens joins the running batch.

One task, the pump, steps the engine while there are requests and gives way to the event loop between
steps. Nobody waits for a batch to fill or for a stage to end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from joblib import cpu_count
from transformers import AutoTokenizer
from vllm import RequestOutput, SamplingParams
from vllm.inputs import MultiModalInput
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.llm_engine import LLMEngine

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import check_manifest
from affect_rl.policy.publication import Announcement
from affect_rl.policy.tensor_parallel import check_divides
from affect_rl.policy.transfer import Meeting
from affect_rl.policy.weights import WeightsHandle
from affect_rl.timeline import Spans
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.absences import Absences
from rollout_workers.vllm.arguments import adapter_slots, check_cpu_limits, engine_args, prepare_process
from rollout_workers.vllm.lora import group_adapters
from rollout_workers.vllm.model import engine_input
from rollout_workers.vllm.plugin import register
from rollout_workers.vllm.statistics import Sample, samples
from rollout_workers.vllm.weight_sync import WeightSync

# Turns of the event loop after which every coroutine that could run has reached its next wait. A
# chain of awaiting tasks is a few turns deep; each turn costs microseconds.
_SETTLING_TURNS = 64


class EngineError(RuntimeError):
    """The engine died or let a deadline pass; the message names stage and weight version."""


@dataclass(slots=True)
class _Request:
    """One generation on its way through the engine."""

    id: str
    input: MultiModalInput
    params: SamplingParams
    lora: LoRARequest | None
    done: asyncio.Future[RequestOutput]

    @property
    def order(self) -> tuple[int, list[int]]:
        """Sorts requests by content, so that admission does not depend on who asked first."""
        return (self.params.seed or 0, self.input["prompt_token_ids"])


@dataclass(slots=True)
class EngineStats:
    """Counters since the start.

    Attributes:
        steps: engine steps.
        generated_tokens: tokens sampled, of finished requests.
        prompt_tokens: prompt tokens of finished requests.
        cached_tokens: prompt tokens that the prefix cache served.
        retrieval_s: seconds in which at least one episode waited for retrieval, or for an engine of frozen agents.
        busy_s: seconds spent in steps.
        kv_cache_steps: shares of the KV cache that were in use, added up over the steps.
    """

    steps: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retrieval_s: float = 0.0
    busy_s: float = 0.0
    kv_cache_steps: float = 0.0


class RolloutEngine:
    """Generates under a policy, with behaviour log-probs and weight versions per token.

    Args:
        policy_dir: directory written by `AffectPolicy.save`.
        config: sizes, threads and deadlines.
        context: longest prompt plus answer, in tokens.
        seed: seed of everything random that requests do not seed themselves.
        lora: shape of adapters that later policies may have; None: those of `policy_dir`, if it has any.
        adapters: how many.
        verify: hash the files of `policy_dir`; not where another process has done so, see `check_manifest`.

    Raises:
        AffectError: `policy_dir` is not a policy, or vLLM cannot run it on this kind of machine.
    """

    def __init__(
        self,
        policy_dir: Path,
        config: RolloutConfig,
        *,
        context: int,
        seed: int,
        lora: Lora | None = None,
        adapters: int = 1,
        verify: bool = True,
    ) -> None:
        check_manifest(policy_dir, content=verify)
        register()
        prepare_process(config.threads or max(1, cpu_count() // config.tensor_parallel))
        self.config = config
        self.policy_config = AffectConfig.from_pretrained(policy_dir)
        try:
            check_divides(config.tensor_parallel, self.policy_config.text_config.to_dict(), str(policy_dir))
        except ValueError as error:
            raise AffectError(str(error)) from None
        if not config.gpus_per_worker:
            check_cpu_limits(self.policy_config, config)
        self.tokenizer = AutoTokenizer.from_pretrained(policy_dir)
        slots = adapter_slots(policy_dir, self.policy_config, lora, adapters)
        args = engine_args(policy_dir, self.policy_config, config, context, seed, slots)
        try:
            self._engine = LLMEngine.from_engine_args(args)
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            kind, reason = self.policy_config.text_config.model_type, shorten(str(error), 300, placeholder=" ...")
            raise AffectError(f"{policy_dir}: vLLM cannot serve this policy (a {kind}): {reason}") from error
        if slots and not config.gpus_per_worker:
            self._engine.apply_model(group_adapters)
        self._sync = WeightSync(self._engine, policy_dir, slots.get("max_loras", 0))
        self._ids = itertools.count()
        self._arrived: list[_Request] = []
        self._running: dict[str, _Request] = {}
        self._pump: asyncio.Task[None] | None = None
        self._waiting_elsewhere, self._waiting_since = 0, 0.0
        self._absences = Absences()
        self._back: asyncio.Future[None] | None = None
        self._death: EngineError | None = None
        self._stats, self.spans = EngineStats(), Spans()

    # -- generating ------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        adapter: str | None = TEAM,
        pattern: str = "",
    ) -> Generation:
        """Sample an answer; temperature 0 is greedy, with log-probs at temperature 1.

        Args:
            prompt: what to answer.
            max_tokens: longest answer.
            temperature: of sampling.
            seed: of sampling, with ``deterministic``; without, all draw from the engine's own generator.
            adapter: whose policy answers; None: their base. A plain policy has none and is itself under any name.
            pattern: regular expression that the answer is held to, if not empty. Its log-probs are then those among the
                tokens that were allowed.

        Raises:
            AffectError: the prompt does not fit the policy, or is longer than the context, or the policy has other
                adapters.
            EngineError: the engine died, or the answer did not come within ``deadline_s``.
        """
        self.check()
        loop = asyncio.get_running_loop()
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            # A generator of its own costs a request a turn of a loop in Python at each step.
            seed=seed if self.config.deterministic else None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=pattern) if pattern else None,
        )
        fed = engine_input(prompt, self.policy_config)
        request = _Request(str(next(self._ids)), fed, params, self._lora_request(adapter), loop.create_future())
        self._arrived.append(request)
        self._keep_pumping()
        try:
            async with asyncio.timeout(self.config.deadline_s):
                return self._generation(await request.done)
        except TimeoutError:
            raise EngineError(
                f"generation: no answer within rollout.deadline_s={self.config.deadline_s} under weight version "
                f"{self.version} ({len(self._running)} requests running, {self._waiting_elsewhere} waits elsewhere)"
            ) from None
        finally:
            self._forget(request)

    def _lora_request(self, adapter: str | None) -> LoRARequest | None:
        known = self._sync.adapters
        if adapter is None or not known:
            return None
        if adapter not in known:
            raise AffectError(f"adapter {adapter!r}: the policy has no such adapter (it has: {', '.join(known)})")
        return known[adapter]

    @asynccontextmanager
    async def waiting_elsewhere(self, steps: int = 0) -> AsyncIterator[None]:
        """Marks an episode's wait for something other than this engine, such as a retrieval.

        With ``deterministic`` the batches that the engine forms must not depend on when answers arrive. So the episode
        goes on exactly `steps` of the engine's steps later: an early answer is held until then, and for a late one the
        engine rests. With 0 it rests at once. Where nothing else is to be done, no step is waited for.
        """
        absence = self._absences.begin(steps) if self.config.deterministic else None
        if absence:
            self._keep_pumping()
        if not self._waiting_elsewhere:
            self._waiting_since = time.perf_counter()
        self._waiting_elsewhere += 1
        try:
            try:
                yield
            finally:
                self._count_return()
            if absence and steps:
                absence.back = True
                self._go_on()
                await absence.over
        finally:
            if absence:
                self._absences.forget(absence)
                self._go_on()

    def _count_return(self) -> None:
        self._waiting_elsewhere -= 1
        if not self._waiting_elsewhere:
            seconds = time.perf_counter() - self._waiting_since
            self._stats.retrieval_s += seconds
            self.spans.add("wait for retrieval", time.time() - seconds, seconds)

    def _go_on(self) -> None:
        """Let the pump look again whether it may step."""
        if self._back and not self._back.done():
            self._back.set_result(None)

    def _keep_pumping(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._pump_steps())

    async def _pump_steps(self) -> None:
        try:
            with self.spans("play"):
                while self._arrived or self._running or self._absences:
                    await self._settle()
                    self._admit()
                    if self._running:
                        for output in self._step():
                            self._finish(output)
        except Exception as error:
            self._die(error)

    def _step(self) -> list[RequestOutput]:
        begun = time.perf_counter()
        outputs = self._engine.step()
        self._absences.clock += 1
        self._stats.steps += 1
        self._stats.busy_s += time.perf_counter() - begun
        self._stats.kv_cache_steps += self._kv_cache_use()
        return outputs

    def _kv_cache_use(self) -> float:
        """Share of the KV cache's blocks that requests hold; those kept for their prefix alone do not count."""
        return self._engine.engine_core.engine_core.scheduler.get_kv_cache_usage()

    async def _settle(self) -> None:
        """Let the coroutines run that the last step has woken, so that they share the next one."""
        while True:
            for _ in range(_SETTLING_TURNS):
                await asyncio.sleep(0)
            expected = self._absences.expected(idle=not (self._arrived or self._running))
            if self._sync.torn or not all(absence.back for absence in expected):
                self._back = asyncio.get_running_loop().create_future()
                await self._back
            elif expected:
                self._absences.end(expected)
            else:
                break
        self._arrived.sort(key=lambda request: request.order)

    def _admit(self) -> None:
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            if request.done.done():  # its caller has given up
                continue
            try:
                self._engine.add_request(request.id, request.input, request.params, lora_request=request.lora)
            except Exception as error:  # vLLM's verdict on this request; the others go on
                request.done.set_exception(AffectError(f"generation: vLLM refuses the request: {error}"))
            else:
                self._running[request.id] = request

    def _finish(self, output: RequestOutput) -> None:
        request = self._running.pop(output.request_id)
        self._stats.generated_tokens += len(output.outputs[0].token_ids)
        self._stats.prompt_tokens += len(request.input["prompt_token_ids"])
        self._stats.cached_tokens += output.num_cached_tokens or 0
        if not request.done.done():
            request.done.set_result(output)

    def _forget(self, request: _Request) -> None:
        """Drop a request that its caller no longer waits for."""
        if request in self._arrived:
            self._arrived.remove(request)
        if self._running.pop(request.id, None):
            self._engine.abort_request([request.id])

    def _die(self, cause: Exception) -> None:
        self._death = EngineError(f"generation: the engine died under weight version {self.version}: {cause!r}")
        self._death.__cause__ = cause
        for request in (*self._arrived, *self._running.values()):
            if not request.done.done():
                request.done.set_exception(self._death)
        self._arrived.clear()
        self._running.clear()
        self._absences.end_all()

    def _generation(self, output: RequestOutput) -> Generation:
        answer = output.outputs[0]
        return Generation(
            token_ids=tuple(answer.token_ids),
            logprobs=tuple(answer.logprobs.logprobs),
            weight_versions=tuple(int(s.version) for s in answer.weight_versions for _ in range(s.start, s.end)),
            text=self.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            finished=answer.finish_reason == "stop",
        )

    # -- weights ---------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version of the weights that the next token will come from; 0 is the policy directory."""
        return self._sync.version

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters of the policy that it serves."""
        return tuple(self._sync.adapters)

    async def update_weights(self, handle: WeightsHandle) -> int:
        """Go on under other weights, see `WeightSync.update`; returns the version the engine reports.

        Requests in flight need not be waited for: the pump never steps while this runs.
        """
        self.check()
        with self.spans("load weights"):
            version = self._sync.update(handle)
        self._go_on()
        return version

    async def join_group(self, meeting: Meeting, address: str) -> bool:
        """Meet the learner for `receive_weights`, see `WeightSync.join`; `address`: of this node in Ray."""
        self.check()
        return self._sync.join(meeting, address)

    async def receive_weights(self, announcement: Announcement) -> int | None:
        """As `update_weights`, by a broadcast from the learner; None: it broke off, and the engine rests until
        `update_weights` gives it a whole version."""
        self.check()
        with self.spans("receive weights"):
            version = self._sync.receive(announcement)
        self._go_on()
        return version

    @property
    def torn(self) -> bool:
        """Whether loading broke off, so that the engine rests until `update_weights` gives it a whole version."""
        return self._sync.torn

    def forget(self) -> None:
        """Drop the prefix cache and the cached soft tokens."""
        self._sync.forget()

    def checksum(self) -> int:
        """`affect_rl.policy.checksum.multiset_checksum` of the engine's own tensors."""
        return self._sync.checksum()

    # -- the rest --------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """The counters of `EngineStats` by name; and of now: the weight version, the share of the KV cache in use, and
        how many requests are running and waiting."""
        now = {"running": len(self._running), "waiting": len(self._arrived), "version": self.version}
        return {**asdict(self._stats), **now, "kv_cache_use": self._kv_cache_use()}

    def vllm_statistics(self) -> list[Sample]:
        """vLLM's own; empty without ``rollout.vllm_statistics``."""
        return list(samples(self._engine.get_metrics())) if self.config.vllm_statistics else []

    def check(self) -> None:
        """Raise what the engine died of, if it did."""
        if self._death:
            raise self._death

    def close(self) -> None:
        """Give memory back; the engine cannot be used afterwards."""
        self._death = EngineError("generation: the engine was closed")
        self._engine.engine_core.shutdown()
