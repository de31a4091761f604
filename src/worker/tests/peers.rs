//! Lists of peers, and closing some of them.

use super::*;
use crate::worker::mailbox::Peer;

/// A search of the worker, and what it reports.
fn search(
    rig: &mut Rig,
    command: Command<<Sim as Driver>::Socket>,
) -> Report<<Sim as Driver>::Socket> {
    rig.command(command);
    rig.run();
    rig.reports.try_recv().expect("a search is reported")
}

pub(super) fn list(
    order: Order,
    after: Option<Rank>,
    max: usize,
) -> Command<<Sim as Driver>::Socket> {
    Command::ListPeers {
        query: 9,
        selection: Selection::default(),
        order,
        after,
        max,
    }
}

/// All peers in this order, and the sizes of the parts in which they were reported.
pub(super) fn listed(rig: &mut Rig, order: Order, max: usize) -> (Vec<Peer>, Vec<usize>) {
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    let mut after = None;
    let mut total = None;
    loop {
        let Report::Peers {
            query: 9,
            peers,
            matched,
            more_after,
        } = search(rig, list(order, after, max))
        else {
            panic!("another report");
        };
        assert_eq!(*total.get_or_insert(matched), matched);
        sizes.push(peers.len());
        all.extend(peers);
        after = more_after;
        if after.is_none() {
            assert_eq!(all.len() as u64, matched);
            return (all, sizes);
        }
    }
}

#[test]
fn peers_are_listed_in_parts_in_every_order_and_closed_by_id() {
    let mut rig = Rig::new(1, Faults::default(), 1000, settings());
    let peers: Vec<RemotePeer> = (0..600).map(|_| rig.connect()).collect();
    rig.exchange(peers[0], b"12345");
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    rig.network.send_datagram(client, udp_server(), b"123");
    rig.pass(SECOND);
    let orders = [
        Order::Id,
        Order::Listener,
        Order::Address,
        Order::Age,
        Order::Idle,
        Order::Received,
        Order::Sent,
        Order::Rtt,
    ];
    for order in orders {
        let (found, sizes) = listed(&mut rig, order, 256);
        assert_eq!(sizes, [256, 256, 89], "{order:?}");
        let in_order = found.windows(2).all(|pair| pair[0].rank < pair[1].rank);
        assert!(in_order, "{order:?}");
        let mut ids: Vec<u64> = found.iter().map(|peer| peer.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 601, "each is listed once: {order:?}");
    }
    let (found, _) = listed(&mut rig, Order::Received, 1000);
    let busy = &found[0];
    assert!(busy.bytes_received == 5 && busy.bytes_sent == 5);
    assert!(busy.age >= SECOND && busy.idle >= SECOND);
    assert_eq!(found[1].kind, SocketKind::Datagram);
    assert_eq!(found[1].bytes_sent, 3);

    let close = |dry_run| Command::ClosePeers {
        query: 3,
        selection: Selection {
            id: Some(busy.id),
            ..Selection::default()
        },
        dry_run,
        max: 1,
    };
    for (dry_run, expected) in [(true, 0), (false, 1)] {
        let report = search(&mut rig, close(dry_run));
        let Report::PeersClosed { query: 3, closed } = report else {
            panic!("{report:?}");
        };
        assert_eq!((closed.matched, closed.closed), (1, expected));
        assert_eq!(closed.peers[0].id, busy.id);
    }
    assert_eq!(rig.network.end(peers[0]), Some(End::Fin));
    assert_eq!(listed(&mut rig, Order::Id, 256).0.len(), 600);
}

#[test]
fn a_search_reports_no_more_peers_than_asked_for_and_counts_them_all() {
    let mut rig = Rig::new(1, Faults::default(), 1000, settings());
    let peers: Vec<RemotePeer> = (0..600).map(|_| rig.connect()).collect();
    rig.exchange(peers[599], b"the last");
    for max in [0, 1, 3] {
        let report = search(&mut rig, list(Order::Received, None, max));
        let Report::Peers { peers, matched, .. } = report else {
            panic!("{report:?}");
        };
        assert_eq!((peers.len(), matched), (max, 600));
        assert!(peers.first().is_none_or(|peer| peer.bytes_received == 8));
    }
}
