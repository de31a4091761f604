//! Lists of peers, and closing some of them.

use super::*;
use crate::worker::mailbox::Peer;

pub(super) fn listed(rig: &mut Rig) -> Vec<Peer> {
    rig.command(Command::ListPeers { query: 9 });
    rig.run();
    let mut all = Vec::new();
    while let Ok(report) = rig.reports.try_recv() {
        let Report::Peers {
            query: 9,
            peers,
            last,
        } = report
        else {
            panic!("{report:?}")
        };
        all.extend(peers);
        if last {
            return all;
        }
    }
    panic!("the list has no end");
}

#[test]
fn peers_are_listed_in_parts_and_closed_by_id() {
    let mut rig = Rig::new(1, Faults::default(), 1000, settings());
    let peers: Vec<RemotePeer> = (0..600).map(|_| rig.connect()).collect();
    rig.exchange(peers[0], b"12345");
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    rig.network.send_datagram(client, udp_server(), b"123");
    rig.pass(SECOND);
    let found = listed(&mut rig);
    assert_eq!(found.len(), 601);
    assert_eq!(
        found
            .iter()
            .filter(|peer| peer.kind == SocketKind::Datagram && peer.bytes_sent == 3)
            .count(),
        1
    );
    let busy = found.iter().find(|peer| peer.bytes_received == 5).unwrap();
    assert!(busy.age >= SECOND && busy.idle >= SECOND && busy.bytes_sent == 5);
    let mut ids: Vec<u64> = found.iter().map(|peer| peer.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 601, "ids are unique");

    rig.command(Command::ClosePeers {
        query: 3,
        ids: Arc::from([busy.id, 1_000_000]),
    });
    rig.run();
    assert!(matches!(
        rig.reports.try_recv(),
        Ok(Report::PeersClosed {
            query: 3,
            closed: 1
        })
    ));
    assert_eq!(rig.network.end(peers[0]), Some(End::Fin));
    assert_eq!(listed(&mut rig).len(), 600);
}
