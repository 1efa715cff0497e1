# SPDX-License-Identifier: GPL-3.0-only
"""A fleet on several devices: who goes where, for whom room is made where, and what is refused."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State
from modeld.domain.model import MIB, Footprint, LoadOptions, ModelFacts, ModelSpec
from modeld.memory.devices import DeviceKind, DeviceRoom
from modeld.memory.layer_placement import CPU, Placement
from modeld.scheduler.capacity import amounts, room_of
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import Effect, Load, Refuse, Stop, Tell
from modeld.scheduler.inputs import DevicesChanged, GotSlot, Loaded, Released, Stopped, Tick

FACTS = ModelFacts(architecture="llama", layers=9, weights_bytes=100 * MIB)


def model(name: str, mb: int = 100, **more: object) -> ModelSpec:
    """Ten layers on GPUs of a tenth each, with 10 MiB of buffers; 20 MiB of the machine's memory."""
    found = spec(name, **more)
    return replace(
        found,
        facts=replace(FACTS, weights_bytes=mb * MIB, output_bytes=mb * MIB // 10),
        footprint=Footprint(weights=mb * MIB, compute=10 * MIB, overhead=(20 - mb // 10) * MIB),
    )


def devices(*gpus: int, cpu: int = 1000, certain: bool = False) -> DevicesChanged:
    """What others leave of so many GPUs, MiB."""
    return DevicesChanged(
        tuple(
            DeviceRoom(
                name=name,
                kind=DeviceKind.CPU if name == CPU else DeviceKind.GPU,
                total=1000 * MIB,
                ceiling=mb * MIB,
                certain=mb * MIB if certain else None,
            )
            for name, mb in ((CPU, cpu), *((f"CUDA{place}", mb) for place, mb in enumerate(gpus)))
        )
    )


def fleet(*gpus: int, sizes: dict[str, int] | None = None, budget_mb: int | None = 5000) -> Paper:
    sizes = sizes or dict.fromkeys("abcd", 100)
    paper = Paper([model(name, mb) for name, mb in sizes.items()], limits(budget_mb))
    paper.feed(devices(*gpus))
    return paper


def where(paper: Paper, name: str) -> Placement:
    found = paper.fleet.instance(f"{name}.gguf").placement
    assert found is not None
    return found


def test_two_models_go_on_two_gpus() -> None:
    """Each on the one with more free then; the load says where and why."""
    paper = fleet(250, 250)
    paper.up("a", "b")
    assert (where(paper, "a").main_gpu, where(paper, "b").main_gpu) == (0, 1)
    loads = [effect for effect in paper.effects if isinstance(effect, Load)]
    assert [load.placement for load in loads] == [where(paper, "a"), where(paper, "b")]
    told = [tell for tell in paper.of(Tell) if tell.action == "load"]
    assert "the GPU with the most free" in told[0].reason
    assert (told[0].numbers["CUDA0_mb"], told[0].numbers["CPU_mb"]) == (110, 20)
    assert paper.fleet.held == 2 * 130 * MIB


def test_one_that_no_gpu_holds_is_split() -> None:
    """Over what both have free."""
    paper = fleet(120, 120, sizes={"a": 200})
    paper.up("a")
    assert where(paper, "a").split == (5, 5)
    room = room_of(paper.fleet)
    assert room is not None
    assert room[2:] == (10 * MIB, 10 * MIB)


def test_room_is_made_on_the_gpu_where_that_costs_least() -> None:
    """An idle model on the other GPU is of no use, however old: the bytes must be in one place."""
    paper = fleet(150, 150, sizes={"a": 100, "b": 100, "c": 100})
    paper.up("a", "b")
    for _ in range(5):
        paper.now += 1
        paper.serve(paper.arrive("a"))
    waiting = paper.arrive("c")
    assert [stop.model_id for stop in paper.of(Stop)] == ["b.gguf"]
    paper.stopped("b")
    assert where(paper, "c").main_gpu == 1
    paper.loaded("c")
    paper.serve(waiting)


def test_room_for_a_split_is_made_on_all_of_its_gpus() -> None:
    """Both idle models go, as neither GPU alone would do."""
    paper = fleet(150, 150, sizes={"a": 100, "b": 100, "c": 200})
    paper.up("a", "b")
    paper.arrive("c")
    assert {stop.model_id for stop in paper.of(Stop)} == {"a.gguf", "b.gguf"}
    paper.stopped("a")
    assert paper.loads == ["a.gguf", "b.gguf"], "one of two halves is not enough"
    paper.stopped("b")
    assert where(paper, "c").split == (5, 5)


def test_who_evicts_on_one_gpu_does_not_lose_it_to_a_small_one() -> None:
    """What is free beside a claim is only given out on devices that the claim does not need."""
    paper = fleet(150, 140, sizes={"a": 100, "b": 100, "c": 130, "d": 30})
    paper.up("a", "b")
    for _ in range(5):
        paper.now += 1
        paper.serve(paper.arrive("b"))
    paper.arrive("c")
    assert [stop.model_id for stop in paper.of(Stop)] == ["a.gguf"]
    paper.arrive("d")
    assert paper.loads[-1] == "b.gguf"
    paper.stopped("a")
    assert paper.loads == ["a.gguf", "b.gguf", "c.gguf"]
    assert where(paper, "c").main_gpu == 0


def test_layers_stay_with_the_cpu_only_where_no_eviction_would_help() -> None:
    """A model that would fit the GPU alone waits for it; one that never would begins at once."""
    paper = fleet(150, sizes={"a": 100, "b": 100, "c": 300})
    paper.up("a")
    paper.arrive("b")
    assert [stop.model_id for stop in paper.of(Stop)] == ["a.gguf"]
    paper = fleet(150, sizes={"c": 300})
    paper.up("c")
    assert where(paper, "c").gpu_layers == 4
    assert where(paper, "c").reason.startswith("4 of 10 layers")


def test_what_finds_no_place_at_all_is_refused_with_the_numbers_of_each_device() -> None:
    """Neither the GPUs nor the machine's memory: 507, and nobody goes."""
    paper = fleet(100, 100, sizes={"a": 50, "b": 4000})
    paper.up("a")
    paper.arrive("b")
    problem = paper.of(Refuse)[-1].problem
    assert problem.kind == "does_not_fit"
    assert "finds no place on the devices" in problem.message
    assert "1000 MiB (CPU), 1000 MiB (CUDA0), 1000 MiB (CUDA1)" in problem.message
    assert paper.of(Stop) == []


def test_what_others_leave_too_little_of_is_refused_for_now() -> None:
    """It would fit if they went: 503, with what they leave of each device."""
    options = LoadOptions(slots=2, gpu_layers=10)
    paper = Paper([replace(model("a"), options=options)], limits(5000))
    paper.feed(devices(40, 60))
    paper.arrive("a")
    problem = paper.of(Refuse)[-1].problem
    assert (problem.kind, problem.retry_after_s) == ("memory_taken", 10.0)
    assert "1000 MiB (CPU), 40 MiB (CUDA0), 60 MiB (CUDA1)" in problem.message


def test_a_gpu_that_is_not_there_is_refused() -> None:
    """The operator named the second one, and there is one."""
    paper = Paper([replace(model("a"), options=LoadOptions(main_gpu=1))], limits(5000))
    paper.feed(devices(900))
    paper.arrive("a")
    problem = paper.of(Refuse)[-1].problem
    assert problem.kind == "does_not_fit"
    assert "llama_main_gpu is 1, and of the GPUs CUDA0 the last one is 0" in problem.message


def test_the_margin_stays_free_on_each_device() -> None:
    """10 MiB of margin make 150 too little for 140 and a buffer of 10."""
    paper = Paper([model("a", 140)], limits(5000, margin=10 * MIB))
    paper.feed(devices(150))
    paper.up("a")
    assert where(paper, "a").gpu_layers == 9
    room = room_of(paper.fleet)
    assert room is not None
    assert min(room) >= 0


def test_without_a_budget_a_place_is_chosen_and_nothing_is_refused() -> None:
    """What finds no place is left to llama.cpp."""
    paper = fleet(150, 300, sizes={"a": 100, "b": 5000}, budget_mb=None)
    paper.up("a", "b")
    assert where(paper, "a").main_gpu == 1
    assert paper.fleet.instance("b.gguf").placement is None
    assert paper.of(Refuse) == []


def test_idle_models_give_way_on_the_device_that_others_took() -> None:
    """Those on the other one stay."""
    paper = fleet(150, 150)
    paper.up("a", "b")
    paper.feed(devices(150, 60, certain=True))
    assert [stop.model_id for stop in paper.of(Stop)] == ["b.gguf"]


def test_a_model_that_goes_from_one_device_is_told_of_that_device() -> None:
    """All of the budget can still be given out, elsewhere: only the one device has too little."""
    paper = fleet(150, 150, budget_mb=400)
    paper.up("a", "b")
    paper.feed(devices(150, 60, certain=True))
    (unload,) = [tell for tell in paper.of(Tell) if tell.kind == "foreign"]
    assert unload.model_id == "b.gguf"
    assert unload.reason == (
        "idle, and other processes leave only 60 MiB of CUDA1 to models, less than is loaded there"
    )


def test_a_device_that_vanishes_takes_no_more_and_nothing_breaks() -> None:
    """What was there keeps its bytes of the budget until it is gone."""
    paper = fleet(150, 150)
    paper.up("a", "b")
    paper.feed(DevicesChanged(devices(150).devices))
    assert paper.fleet.held == 2 * 130 * MIB
    paper.arrive("c")
    paper.stopped("a")
    assert where(paper, "c").main_gpu == 0
    paper.feed(DevicesChanged(()))
    assert room_of(paper.fleet) == (5000 * MIB - paper.fleet.held,)


class Chance:
    """Plays random requests, ends and looks on a fleet with GPUs, and keeps books of its own."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 -- the same schedules every time
        self.gpus = [self.chance.randrange(60, 400) for _ in range(self.chance.randrange(1, 4))]
        sizes = {name: self.chance.randrange(20, 500) for name in "abcde"}
        self.paper = fleet(*self.gpus, sizes=sizes, budget_mb=self.chance.randrange(300, 1500))
        self.fifo: list[int] = []
        self.left = self.paper.fleet.devices

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.chance.choice([self.arrive, self.arrive, self.answer, self.answer, self.look, self.wait])()
            self.check()

    def arrive(self) -> None:
        self.take(self.paper.arrive(self.chance.choice("abcde")))

    def take(self, _ticket: int) -> None:
        self.perform()

    def answer(self) -> None:
        """Let what loads or stops be done, or serve what was granted."""
        views = list(self.paper.fleet.instances.values())
        loading = [it.model_id for it in views if it.state is State.LOADING and not it.stopping]
        stopping = [it.model_id for it in views if it.stopping]
        leases = [lease.ticket for it in views for lease in it.leases]
        if stopping and self.chance.random() < 0.5:
            self.feed(Stopped(self.chance.choice(stopping)))
        elif loading:
            self.feed(Loaded(self.chance.choice(loading), 2))
        elif leases:
            ticket = self.chance.choice(leases)
            self.feed(GotSlot(ticket))
            self.feed(Released(ticket, served=True))

    def look(self) -> None:
        gpus = [self.chance.choice([mb, mb, mb // 2]) for mb in self.gpus]
        self.feed(devices(*gpus, cpu=self.chance.choice([1000, 200]), certain=self.chance.random() < 0.3))

    def wait(self) -> None:
        due = next_deadline(self.paper.fleet, self.paper.now)
        self.paper.now = (
            self.paper.now + 1 if due is None else max(self.paper.now, min(due, self.paper.now + 40))
        )
        self.feed(Tick())

    def feed(self, event: object) -> None:
        self.paper.feed(event)
        self.perform()

    def perform(self) -> None:
        """Hold each load against what there was for it."""
        new: list[Effect] = self.paper.effects
        for effect in new:
            if isinstance(effect, Load):
                assert effect.placement is not None
                room = room_of(self.paper.fleet)
                assert room is not None
                names = [None, *(device.name for device in self.paper.fleet.devices)]
                used = {None, *effect.placement.bytes}
                assert all(left >= 0 for name, left in zip(names, room, strict=True) if name in used), (
                    "nothing is loaded into what is not there"
                )
        self.paper.effects = []

    def check(self) -> None:
        held = amounts(self.paper.fleet, self.paper.fleet.instances.values())
        placed = [it for it in self.paper.fleet.instances.values() if it.placement is not None]
        assert held[0] == sum(it.placement.total for it in placed if it.placement is not None)
        assert held[0] <= (self.paper.fleet.limits.budget or 0)
        assert all(size <= 1000 * MIB for size in held[1:])


@pytest.mark.parametrize("part", range(4))
def test_random_schedules_on_gpus_never_load_into_what_is_not_there(part: int) -> None:
    """Whatever comes, goes and is taken by others; and in the end everybody was answered."""
    for seed in range(part * 15, part * 15 + 15):
        game = Chance(seed)
        game.play(150)
        game.feed(devices(*game.gpus))
        for _ in range(4000):
            if not game.paper.fleet.waiting and not any(
                it.leases for it in game.paper.fleet.instances.values()
            ):
                break
            game.answer()
            game.wait()
            game.check()
        assert game.paper.fleet.waiting == (), f"seed {seed}: somebody waits for ever"
