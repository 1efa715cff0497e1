# SPDX-License-Identifier: GPL-3.0-only
"""A fleet on several devices: who goes where, for whom room is made where, and what is refused."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Footprint, LoadOptions, ModelFacts, ModelSpec
from modeld.memory.devices import DeviceKind, DeviceLimit
from modeld.memory.layer_placement import CPU, Placement
from modeld.scheduler.capacity import device_bytes, free_memory
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import Effect, RecordDecision, Refuse, StartLoad, StopInstance
from modeld.scheduler.inputs import (
    DevicesChanged,
    InstanceLoaded,
    InstanceStopped,
    SlotReleased,
    SlotTaken,
    Tick,
)

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
            DeviceLimit(
                name=name,
                kind=DeviceKind.CPU if name == CPU else DeviceKind.GPU,
                total=1000 * MIB,
                ceiling=mb * MIB,
                certain=mb * MIB if certain else None,
            )
            for name, mb in ((CPU, cpu), *((f"CUDA{place}", mb) for place, mb in enumerate(gpus)))
        )
    )


def fleet(*gpus: int, sizes: dict[str, int] | None = None, budget_mb: int | None = 5000) -> SchedulerDriver:
    sizes = sizes or dict.fromkeys("abcd", 100)
    driver = SchedulerDriver([model(name, mb) for name, mb in sizes.items()], limits(budget_mb))
    driver.feed(devices(*gpus))
    return driver


def where(driver: SchedulerDriver, name: str) -> Placement:
    found = driver.fleet.instance(f"{name}.gguf").placement
    assert found is not None
    return found


def test_two_models_go_on_two_gpus() -> None:
    """Each on the one with more free then; the load says where and why."""
    driver = fleet(250, 250)
    driver.up("a", "b")
    assert (where(driver, "a").main_gpu, where(driver, "b").main_gpu) == (0, 1)
    loads = [effect for effect in driver.effects if isinstance(effect, StartLoad)]
    assert [load.placement for load in loads] == [where(driver, "a"), where(driver, "b")]
    told = [tell for tell in driver.of(RecordDecision) if tell.action == "load"]
    assert "the GPU with the most free" in told[0].reason
    assert (told[0].numbers["CUDA0_mb"], told[0].numbers["CPU_mb"]) == (110, 20)
    assert driver.fleet.held == 2 * 130 * MIB


def test_one_that_no_gpu_holds_is_split() -> None:
    """Over what both have free."""
    driver = fleet(120, 120, sizes={"a": 200})
    driver.up("a")
    assert where(driver, "a").split == (5, 5)
    room = free_memory(driver.fleet)
    assert room is not None
    assert room[2:] == (10 * MIB, 10 * MIB)


def test_room_is_made_on_the_gpu_where_that_costs_least() -> None:
    """An idle model on the other GPU is of no use, however old: the bytes must be in one place."""
    driver = fleet(150, 150, sizes={"a": 100, "b": 100, "c": 100})
    driver.up("a", "b")
    for _ in range(5):
        driver.now += 1
        driver.serve(driver.arrive("a"))
    waiting = driver.arrive("c")
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["b.gguf"]
    driver.stopped("b")
    assert where(driver, "c").main_gpu == 1
    driver.loaded("c")
    driver.serve(waiting)


def test_room_for_a_split_is_made_on_all_of_its_gpus() -> None:
    """Both idle models go, as neither GPU alone would do."""
    driver = fleet(150, 150, sizes={"a": 100, "b": 100, "c": 200})
    driver.up("a", "b")
    driver.arrive("c")
    assert {stop.model_id for stop in driver.of(StopInstance)} == {"a.gguf", "b.gguf"}
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "b.gguf"], "one of two halves is not enough"
    driver.stopped("b")
    assert where(driver, "c").split == (5, 5)


def test_who_evicts_on_one_gpu_does_not_lose_it_to_a_small_one() -> None:
    """What is free is only given out on devices that a reservation does not need."""
    driver = fleet(150, 140, sizes={"a": 100, "b": 100, "c": 130, "d": 30})
    driver.up("a", "b")
    for _ in range(5):
        driver.now += 1
        driver.serve(driver.arrive("b"))
    driver.arrive("c")
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["a.gguf"]
    driver.arrive("d")
    assert driver.loads[-1] == "b.gguf"
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "b.gguf", "c.gguf"]
    assert where(driver, "c").main_gpu == 0


def test_layers_stay_with_the_cpu_only_where_no_eviction_would_help() -> None:
    """A model that would fit the GPU alone waits for it; one that never would begins at once."""
    driver = fleet(150, sizes={"a": 100, "b": 100, "c": 300})
    driver.up("a")
    driver.arrive("b")
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["a.gguf"]
    driver = fleet(150, sizes={"c": 300})
    driver.up("c")
    assert where(driver, "c").gpu_layers == 4
    assert where(driver, "c").reason.startswith("4 of 10 layers")


def test_what_finds_no_place_at_all_is_refused_with_the_numbers_of_each_device() -> None:
    """Neither the GPUs nor the machine's memory: 507, and nobody goes."""
    driver = fleet(100, 100, sizes={"a": 50, "b": 4000})
    driver.up("a")
    driver.arrive("b")
    problem = driver.of(Refuse)[-1].problem
    assert problem.kind == "does_not_fit"
    assert "finds no place on the devices" in problem.message
    assert "1000 MiB (CPU), 1000 MiB (CUDA0), 1000 MiB (CUDA1)" in problem.message
    assert driver.of(StopInstance) == []


def test_what_others_leave_too_little_of_is_refused_for_now() -> None:
    """It would fit if they went: 503, with what they leave of each device."""
    options = LoadOptions(slots=2, gpu_layers=10)
    driver = SchedulerDriver([replace(model("a"), options=options)], limits(5000))
    driver.feed(devices(40, 60))
    driver.arrive("a")
    problem = driver.of(Refuse)[-1].problem
    assert (problem.kind, problem.retry_after_s) == ("memory_taken", 10.0)
    assert "1000 MiB (CPU), 40 MiB (CUDA0), 60 MiB (CUDA1)" in problem.message


def test_a_gpu_that_is_not_there_is_refused() -> None:
    """The operator named the second one, and there is one."""
    driver = SchedulerDriver([replace(model("a"), options=LoadOptions(main_gpu=1))], limits(5000))
    driver.feed(devices(900))
    driver.arrive("a")
    problem = driver.of(Refuse)[-1].problem
    assert problem.kind == "does_not_fit"
    assert "llama_main_gpu is 1, and of the GPUs CUDA0 the last one is 0" in problem.message


def test_the_margin_stays_free_on_each_device() -> None:
    """10 MiB of margin make 150 too little for 140 and a buffer of 10."""
    driver = SchedulerDriver([model("a", 140)], limits(5000, margin=10 * MIB))
    driver.feed(devices(150))
    driver.up("a")
    assert where(driver, "a").gpu_layers == 9
    room = free_memory(driver.fleet)
    assert room is not None
    assert min(room) >= 0


def test_without_a_budget_a_place_is_chosen_and_nothing_is_refused() -> None:
    """What finds no place is left to llama.cpp."""
    driver = fleet(150, 300, sizes={"a": 100, "b": 5000}, budget_mb=None)
    driver.up("a", "b")
    assert where(driver, "a").main_gpu == 1
    assert driver.fleet.instance("b.gguf").placement is None
    assert driver.of(Refuse) == []


def test_idle_models_give_way_on_the_device_that_others_took() -> None:
    """Those on the other one stay."""
    driver = fleet(150, 150)
    driver.up("a", "b")
    driver.feed(devices(150, 60, certain=True))
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["b.gguf"]


def test_a_model_that_goes_from_one_device_is_told_of_that_device() -> None:
    """All of the budget can still be given out, elsewhere: only the one device has too little."""
    driver = fleet(150, 150, budget_mb=400)
    driver.up("a", "b")
    driver.feed(devices(150, 60, certain=True))
    (unload,) = [tell for tell in driver.of(RecordDecision) if tell.kind == "foreign"]
    assert unload.model_id == "b.gguf"
    assert unload.reason == (
        "idle, and other processes leave only 60 MiB of CUDA1 to models, less than is loaded there"
    )


def test_a_device_that_vanishes_takes_no_more_and_nothing_breaks() -> None:
    """What was there keeps its bytes of the budget until it is gone."""
    driver = fleet(150, 150)
    driver.up("a", "b")
    driver.feed(DevicesChanged(devices(150).devices))
    assert driver.fleet.held == 2 * 130 * MIB
    driver.arrive("c")
    driver.stopped("a")
    assert where(driver, "c").main_gpu == 0
    driver.feed(DevicesChanged(()))
    assert free_memory(driver.fleet) == (5000 * MIB - driver.fleet.held,)


class Chance:
    """Plays random requests, ends and looks on a fleet with GPUs, and keeps books of its own."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 -- the same schedules every time
        self.gpus = [self.chance.randrange(60, 400) for _ in range(self.chance.randrange(1, 4))]
        sizes = {name: self.chance.randrange(20, 500) for name in "abcde"}
        self.driver = fleet(*self.gpus, sizes=sizes, budget_mb=self.chance.randrange(300, 1500))
        self.fifo: list[int] = []
        self.left = self.driver.fleet.devices

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.chance.choice([self.arrive, self.arrive, self.answer, self.answer, self.look, self.wait])()
            self.check()

    def arrive(self) -> None:
        self.take(self.driver.arrive(self.chance.choice("abcde")))

    def take(self, _ticket: int) -> None:
        self.perform()

    def answer(self) -> None:
        """Let what loads or stops be done, or serve what was granted."""
        views = list(self.driver.fleet.instances.values())
        loading = [it.model_id for it in views if it.state is InstanceState.LOADING and not it.stopping]
        stopping = [it.model_id for it in views if it.stopping]
        leases = [lease.request.ticket for it in views for lease in it.leases]
        if stopping and self.chance.random() < 0.5:
            self.feed(InstanceStopped(self.chance.choice(stopping)))
        elif loading:
            self.feed(InstanceLoaded(self.chance.choice(loading), 2))
        elif leases:
            ticket = self.chance.choice(leases)
            self.feed(SlotTaken(ticket))
            self.feed(SlotReleased(ticket, served=True))

    def look(self) -> None:
        gpus = [self.chance.choice([mb, mb, mb // 2]) for mb in self.gpus]
        self.feed(devices(*gpus, cpu=self.chance.choice([1000, 200]), certain=self.chance.random() < 0.3))

    def wait(self) -> None:
        due = next_deadline(self.driver.fleet, self.driver.now)
        self.driver.now = (
            self.driver.now + 1 if due is None else max(self.driver.now, min(due, self.driver.now + 40))
        )
        self.feed(Tick())

    def feed(self, event: object) -> None:
        self.driver.feed(event)
        self.perform()

    def perform(self) -> None:
        """Hold each load against what there was for it."""
        new: list[Effect] = self.driver.effects
        for effect in new:
            if isinstance(effect, StartLoad):
                assert effect.placement is not None
                room = free_memory(self.driver.fleet)
                assert room is not None
                names = [None, *(device.name for device in self.driver.fleet.devices)]
                used = {None, *effect.placement.bytes}
                assert all(left >= 0 for name, left in zip(names, room, strict=True) if name in used), (
                    "nothing is loaded into what is not there"
                )
        self.driver.effects = []

    def check(self) -> None:
        held = device_bytes(self.driver.fleet, self.driver.fleet.instances.values())
        placed = [it for it in self.driver.fleet.instances.values() if it.placement is not None]
        assert held[0] == sum(it.placement.total for it in placed if it.placement is not None)
        assert held[0] <= (self.driver.fleet.limits.budget or 0)
        assert all(size <= 1000 * MIB for size in held[1:])


@pytest.mark.parametrize("part", range(4))
def test_random_schedules_on_gpus_never_load_into_what_is_not_there(part: int) -> None:
    """Whatever comes, goes and is taken by others; and in the end everybody was answered."""
    for seed in range(part * 15, part * 15 + 15):
        game = Chance(seed)
        game.play(150)
        game.feed(devices(*game.gpus))
        for _ in range(4000):
            if not game.driver.fleet.waiting and not any(
                it.leases for it in game.driver.fleet.instances.values()
            ):
                break
            game.answer()
            game.wait()
            game.check()
        assert game.driver.fleet.waiting == (), f"seed {seed}: somebody waits for ever"
