from clientlb.simulation.loop import Loop


def test_time_jumps_from_event_to_event():
    loop = Loop()
    seen = []
    loop.after(2.0, lambda name: seen.append((loop.clock(), name)), "second")
    loop.at(0.5, lambda name: seen.append((loop.clock(), name)), "first")
    loop.run(until=3.0)
    assert seen == [(0.5, "first"), (2.0, "second")]
    assert loop.now == 3.0


def test_events_of_one_moment_happen_in_the_order_in_which_they_were_planned():
    loop = Loop()
    seen = []
    for name in "abc":
        loop.at(1.0, seen.append, name)
    loop.run(until=1.0)
    assert seen == ["a", "b", "c"]


def test_what_follows_in_time_still_happens_and_what_is_later_waits():
    loop = Loop()
    seen = []

    def again(count):
        seen.append(loop.now)
        loop.after(1.0, again, count + 1)

    loop.at(1.0, again, 1)
    loop.run(until=3.5)
    assert seen == [1.0, 2.0, 3.0]
    loop.run(until=4.0)
    assert seen[-1] == 4.0
