"""Three nodes in network namespaces. Cables are pulled, packets lost, processes killed and stopped; clients on both data
nodes write and read all along, and what they saw must be what one disk would have answered."""

import argparse
import signal
import sys
import time

from controls import prove
from harness import Failure, Report, Workshop, run, wait_until
from history import Clients, faults, pauses, reigns
from nodes import DATA, NODES, WITNESS, Namespaces, Nodes


def other(node):
    return DATA[1 - DATA.index(node)]


class Test:
    """A cluster, clients, and one scenario after another on them."""

    def __init__(self, shop, report):
        self.report = report
        self.nodes = Nodes(shop, network=Namespaces(shop, links=2))
        self.network = self.nodes.network
        shop.undo(lambda: self.clients and self.clients.stop())
        self.clients = None

    def begin(self):
        self.nodes.start_all()
        self.nodes.wait_well()
        self.clients = Clients(DATA, {node: self.nodes.socket(node) for node in DATA})
        self.answered_again()

    def answered_again(self, seconds=30):
        """Waits for a write that was acknowledged after now."""
        since = time.monotonic()
        return wait_until(lambda: self.clients.last_answer(since), "a write to be acknowledged", seconds)

    def scenario(self, what, act, moves=None):
        """Does something to the cluster, heals it, and judges. `moves`: how many takeovers there must be, if one knows."""
        return self.report.step(what, self._scenario, act, moves)

    def _scenario(self, act, moves):
        first, before = len(self.clients.operations), self.nodes.wait_well()
        primary = before["primary"]
        act(self, primary, other(primary))
        self.network.heal()
        for (kind, node), process in list(self.nodes.processes.items()):
            if process.poll() is not None:
                self.nodes.start(kind, node)
        after = self.nodes.wait_well()
        self.answered_again()
        self.clients.read_all(after["primary"], self.nodes.socket(after["primary"]))
        return self._judge(first, before, after, moves)

    def _judge(self, first, before, after, moves):
        operations = list(self.clients.operations)
        wrong = self.clients.corrupt + faults(operations)
        if wrong:
            raise Failure(f"{len(wrong)} answers are wrong, among them: " + "; ".join(wrong[:5]))
        new, epochs = operations[first:], after["epoch"] - before["epoch"]
        seen = reigns(new)
        if seen > epochs + 1:
            raise Failure(f"answers came from {seen} reigns at least, and there were {epochs + 1}: two answered at once")
        if moves is not None and epochs != moves:
            raise Failure(f"{epochs} epochs have begun, not {moves}")
        longest = pauses(new)[0][0] if pauses(new) else 0.0
        return f"{sum(1 for one in new if one.is_write and one.ended)} writes, epochs +{epochs}, longest pause {longest * 1000:.0f} ms"

    # --- what happens -----------------------------------------------------------------------------------------

    def primary_dies(self, primary, secondary):
        self.nodes.kill(primary)
        self.nodes.wait_primary(secondary, ask=WITNESS)
        self.answered_again()

    def primarys_replicator_dies(self, primary, secondary):
        self.nodes.kill(primary, "replicator")
        self.nodes.wait_primary(secondary, ask=WITNESS)
        self.answered_again()

    def primarys_orchestrator_dies(self, primary, _secondary):
        self.nodes.kill(primary, "orchestrator")
        time.sleep(3)

    def secondary_dies(self, primary, secondary):
        self.nodes.kill(secondary)
        self.nodes.wait_primary(primary, ask=WITNESS, members=1)
        self.answered_again()

    def witness_dies(self, _primary, _secondary):
        self.nodes.kill(WITNESS)
        time.sleep(3)
        self.answered_again()

    def everything_dies(self, _primary, _secondary):
        for node in NODES:
            self.nodes.kill(node)

    def primary_unplugged(self, primary, secondary):
        self.network.unplug(primary)
        self.nodes.wait_primary(secondary, ask=WITNESS)
        self.answered_again()

    def secondary_unplugged(self, primary, secondary):
        self.network.unplug(secondary)
        self.nodes.wait_primary(primary, ask=WITNESS, members=1)
        self.answered_again()

    def witness_unplugged(self, _primary, _secondary):
        self.network.unplug(WITNESS)
        time.sleep(3)
        self.answered_again()

    def primary_is_not_heard(self, primary, secondary):
        self.network.drop((primary, secondary), (primary, WITNESS))
        self.nodes.wait_primary(secondary, ask=WITNESS)
        self.answered_again()

    def primary_hears_nobody(self, primary, secondary):
        self.network.drop((secondary, primary), (WITNESS, primary))
        self.nodes.wait_primary(secondary, ask=WITNESS)
        self.answered_again()

    def data_nodes_cut(self, primary, secondary):
        self.network.cut(primary, secondary)
        self.nodes.wait_primary(ask=WITNESS, members=1)
        self.answered_again()

    def one_way_between_data_nodes(self, primary, secondary):
        self.network.drop((primary, secondary))
        time.sleep(5)

    def the_other_way_between_data_nodes(self, primary, secondary):
        self.network.drop((secondary, primary))
        time.sleep(5)

    def primary_cut_from_witness(self, primary, _secondary):
        self.network.cut(primary, WITNESS)
        time.sleep(4)
        self.answered_again()

    def everybody_alone(self, _primary, _secondary):
        for node in NODES:
            self.network.unplug(node)
        time.sleep(4)

    def first_link_lost(self, primary, _secondary):
        self.network.unplug(primary, 0)
        self.answered_again()
        time.sleep(3)

    def second_link_lost(self, primary, _secondary):
        self.network.unplug(primary, 1)
        time.sleep(2)
        self.answered_again()

    @staticmethod
    def asleep(what, seconds, of_primary=True):
        """Processes of a data node are stopped for a while, and wake up."""

        def act(test, primary, secondary):
            node = primary if of_primary else secondary
            test.nodes.signal(node, signal.SIGSTOP, what)
            time.sleep(seconds)
            test.nodes.signal(node, signal.SIGCONT, what)

        return act

    def flaps(self, primary, secondary):
        for _ in range(4):
            self.network.unplug(secondary)
            time.sleep(0.7)
            self.network.plug(secondary)
            time.sleep(0.8)
        status = wait_until(lambda: self.nodes.cluster(self.nodes.leader() or WITNESS), "a leader", 20)
        suspicions = {node["name"]: node["suspicions"] for node in status["nodes"]}
        if not any(suspicions.values()):
            raise Failure(f"nobody was suspected: {suspicions}")

    def moved(self, _primary, secondary):
        self.nodes.tell(WITNESS, "move", "r0", "--to", secondary)
        self.nodes.wait_primary(secondary, ask=WITNESS, members=2)

    # --- the end ----------------------------------------------------------------------------------------------

    def finish(self):
        self.clients.stop()
        self.nodes.wait_level()
        self.nodes.stop_all()
        run(["cmp", *(self.nodes.folder / f"{node}.disk" for node in DATA)])
        return f"{len(self.clients.operations)} operations in all"


def scenarios():
    """Sentences, what to do, and how many epochs begin where that is certain."""
    return {
        "move": ("moved on plan, nothing fails", Test.moved, 1),
        "primary": ("the primary's node dies, and the other serves", Test.primary_dies, 1),
        "replicator": ("the primary's replicator dies alone", Test.primarys_replicator_dies, 1),
        "orchestrator": ("the primary's orchestrator dies alone", Test.primarys_orchestrator_dies, None),
        "secondary": ("the secondary's node dies, and the primary goes on alone", Test.secondary_dies, 0),
        "witness": ("the witness, which leads, dies, and the primary stays", Test.witness_dies, 0),
        "all": ("everything dies at once and starts again", Test.everything_dies, None),
        "unplugged": ("the primary is cut off from all", Test.primary_unplugged, 1),
        "secondary-cut": ("the secondary is cut off from all", Test.secondary_unplugged, 0),
        "witness-cut": ("the witness, which leads, is cut off, and the primary stays", Test.witness_unplugged, 0),
        "unheard": ("the primary hears all and is heard by nobody", Test.primary_is_not_heard, None),
        "deaf": ("the primary is heard by all and hears nobody", Test.primary_hears_nobody, None),
        "data-cut": ("the data nodes are cut off from each other, both see the witness", Test.data_nodes_cut, None),
        "one-way": ("what the primary sends to the secondary is lost", Test.one_way_between_data_nodes, None),
        "other-way": ("what the secondary sends to the primary is lost", Test.the_other_way_between_data_nodes, None),
        "primary-witness": ("the primary is cut off from the witness", Test.primary_cut_from_witness, None),
        "alone": ("everybody is cut off from everybody", Test.everybody_alone, None),
        "link-0": ("the primary loses the first of its two links", Test.first_link_lost, 0),
        "link-1": ("the primary loses the second of its two links, and nobody notices", Test.second_link_lost, 0),
        "sleep-node": ("the primary's node sleeps for 5 s and wakes up", Test.asleep(None, 5), 1),
        "sleep-replicator": ("the primary's replicator sleeps for 4 s", Test.asleep("replicator", 4), None),
        "sleep-orchestrator": ("the primary's orchestrator sleeps for 3 s", Test.asleep("orchestrator", 3), 1),
        "sleep-secondary": ("the secondary's node sleeps for 4 s", Test.asleep(None, 4, of_primary=False), 0),
        "flap": ("the secondary comes and goes", Test.flaps, None),
    }


def main():
    parser = argparse.ArgumentParser(prog="tests/netns/run", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="only these, by their short names (all)")
    parser.add_argument("--list", action="store_true", help="the scenarios")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is played (1)")
    parser.add_argument("--dir", help="where the files are (the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    if options.list:
        for name, (what, _, _) in scenarios().items():
            print(f"  {name:20}{what}")
        return 0
    report = Report("three nodes in network namespaces")
    with Workshop("netns", parent=options.dir, keep=options.keep) as shop:
        test = Test(shop, report)
        known = scenarios()
        unknown = set(options.scenario) - set(known)
        if unknown:
            raise SystemExit(f"no scenario {', '.join(sorted(unknown))}; --list shows them")
        good = report.step("the check of histories tells sound ones from others", prove)
        good = report.step("the nodes start", test.begin) and good
        for name in (options.scenario or known) if good else ():
            what, act, moves = known[name]
            for _ in range(options.rounds):
                good = good and test.scenario(what, act, moves)
        if good:
            report.step("both disks are equal", test.finish)
        else:
            print(test.nodes.logs(), flush=True)
    return report.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
