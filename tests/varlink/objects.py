"""Uses echod's control socket through the object API of the Python module `varlink`.

Called by tests/varlink/mod.rs with the address of the socket and how many peers the listener "main" has,
more than fit into one reply. Ends with 0 only if everything is as it should be.
"""

import sys

import varlink

address, peer_count = sys.argv[1], int(sys.argv[2])
client = varlink.Client.new_with_address(address)


def refused(call, error, parameters):
    try:
        call()
    except varlink.VarlinkError as refusal:
        assert refusal.error() == error, refusal.error()
        assert refusal.parameters() == parameters, refusal.parameters()
    else:
        raise AssertionError(f"{error} was expected")


with client.open("io.echod.Control") as echod:
    status = echod.GetStatus()["status"]
    assert status["state"] == "serving", status
    assert status["connections"] == peer_count, status
    assert status["last_reload"]["trigger"] == "start", status

    listeners = echod.ListListeners()["listeners"]
    assert [listener["name"] for listener in listeners] == ["datagrams", "main"], listeners
    assert "backlog" not in listeners[0], listeners[0]
    assert listeners[1]["connections"] == peer_count, listeners[1]

    # With `more` all of them come, a page at a time.
    pages = list(echod.ListPeers(listener="main", sort="address", _more=True))
    assert all(page["total"] == peer_count for page in pages)
    assert all(len(page["peers"]) <= 256 for page in pages)
    assert len(pages) == -(-peer_count // 256), len(pages)
    ids = {peer["id"] for page in pages for peer in page["peers"]}
    assert len(ids) == peer_count, len(ids)
    # Without it, the first.
    first = echod.ListPeers(listener="main")
    assert len(first["peers"]) == 256 and first["total"] == peer_count

    answer = echod.SetBacklog("main", 77)
    assert answer["after"]["requested"] == 77, answer
    refused(
        lambda: echod.SetBacklog("main", 0),
        "io.echod.Control.InvalidBacklog",
        {"backlog": 0},
    )
    refused(
        lambda: echod.SetBacklog("nobody", 5),
        "io.echod.Control.ListenerNotFound",
        {"name": "nobody"},
    )
    refused(
        lambda: echod.SetBacklog("datagrams", 5),
        "org.varlink.service.InvalidParameter",
        {"parameter": "listener"},
    )
    answer = echod.PauseListener(listener="main", hold=True)
    change = answer["listeners"][0]
    assert (change["before"], change["after"]) == ("listening", "holding"), answer
    for method in (echod.PauseListener, echod.ResumeListener, echod.DrainListener):
        refused(
            lambda: method(),
            "org.varlink.service.InvalidParameter",
            {"parameter": "listener"},
        )
    refused(
        lambda: echod.PauseListener(listener="datagrams", hold=True),
        "io.echod.Control.NothingToHold",
        {"listener": "datagrams"},
    )
    refused(
        lambda: echod.DrainListener(listener="main", deadline_ms=-1),
        "io.echod.Control.InvalidDeadline",
        {"deadline_ms": -1},
    )
    replies = list(echod.DrainListener(listener="datagrams", _more=True))
    assert replies[-1]["connections"] == 0, replies
    answer = echod.ResumeListener(all=True)
    assert {one["after"] for one in answer["listeners"]} == {"listening"}, answer

    refused(
        lambda: echod.ClosePeers(),
        "org.varlink.service.InvalidParameter",
        {"parameter": "id"},
    )
    answer = echod.ClosePeers(id=min(ids), dry_run=True)
    assert answer == {"matched": 1, "closed": 0}, answer
    answer = echod.ClosePeers(id=min(ids))
    assert answer == {"matched": 1, "closed": 1}, answer

    result = echod.Reload()["result"]
    assert result["outcome"] == "applied", result
    assert result["changes"][1]["text"].startswith("main: backlog 77 "), result
    answer = echod.Rollback(dry_run=True)["result"]
    assert answer["outcome"] == "rolled_back", answer
    answer = echod.Rollback()["result"]
    assert answer["summary"] == "1 listener unchanged, main updated (299 kept)", answer
    refused(lambda: echod.Rollback(), "io.echod.Control.NothingToRollBack", {})
    answer = echod.Reload(confirm_within_ms=3600000)["result"]
    assert answer["confirm_within_ms"] == 3600000, answer
    assert echod.Confirm() == {"id": answer["id"]}
    refused(lambda: echod.Confirm(), "io.echod.Control.NothingToConfirm", {})
    assert echod.GetConfig()["toml"].count("[listener.") == 2
    assert echod.SetLogLevel("debug") == {"before": "info", "after": "debug"}

print("the object API: fine")
