//! Datagrams through a whole worker: answered from the address that they were sent to, or counted.

use super::*;
use crate::worker::listening::LAST_ANSWERS_TIME_MAX;

#[test]
fn a_retired_datagram_socket_answers_all_queued_datagrams() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    for _ in 0..100 {
        rig.network.send_datagram(client, udp_server(), b"x");
    }
    rig.retire(DATAGRAM);
    rig.run();
    rig.run();
    assert!(matches!(
        rig.reports.try_recv(),
        Ok(Report::Retired {
            worker: 0,
            id: DATAGRAM
        })
    ));
    assert_eq!(count_answers(&rig, client), 100);
}

#[test]
fn a_retired_datagram_socket_that_can_not_be_emptied_is_closed_after_a_while() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    // No datagram finds a buffer, as where the network takes no answers.
    rig.network.set_faults(Faults {
        famine: 1.0,
        ..Faults::default()
    });
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    rig.network.send_datagram(client, udp_server(), b"x");
    rig.retire(DATAGRAM);
    rig.run();
    assert!(rig.reports.try_recv().is_err(), "it is not empty yet");
    rig.pass(LAST_ANSWERS_TIME_MAX + TICK);
    assert!(matches!(
        rig.reports.try_recv(),
        Ok(Report::Retired {
            worker: 0,
            id: DATAGRAM
        })
    ));
    rig.worker.driver.assert_all_returned();
}

fn count_answers(rig: &Rig, client: Client) -> usize {
    std::iter::from_fn(|| rig.network.receive_datagram(client)).count()
}

#[test]
fn an_answer_leaves_from_the_address_that_the_datagram_was_sent_to() {
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            reply: Reply::Upper,
            ..settings()
        },
    );
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    for message in [b"a datagram".as_slice(), b""] {
        rig.network.send_datagram(client, udp_server(), message);
        rig.run();
        let (from, answer) = rig.network.receive_datagram(client).unwrap();
        assert_eq!((from, answer), (udp_server(), message.to_ascii_uppercase()));
    }
    assert_eq!(
        (rig.totals().datagrams_received, rig.totals().datagrams_sent),
        (2, 2)
    );
}

#[test]
fn a_denied_datagram_and_one_that_is_too_large_are_counted_and_not_answered() {
    let access = Access {
        allow: ["198.51.100.1/32".parse().unwrap()].into(),
        deny: [].into(),
    };
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            access,
            ..settings()
        },
    );
    let admitted = rig.network.client("198.51.100.1:5000".parse().unwrap());
    let denied = rig.network.client("198.51.100.2:5000".parse().unwrap());
    rig.network.send_datagram(denied, udp_server(), b"x");
    rig.network
        .send_datagram(admitted, udp_server(), &vec![0; 65_528]);
    rig.run();
    assert_eq!(
        count_answers(&rig, admitted) + count_answers(&rig, denied),
        0
    );
    assert_eq!(
        (rig.refused(Refusal::Denied), rig.refused(Refusal::Oversize)),
        (1, 1)
    );
    rig.worker.driver.assert_all_returned();
}

#[test]
fn a_datagram_from_the_port_of_a_service_is_counted_and_not_answered() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let clients = ["198.51.100.1:7", "198.51.100.1:1024", "198.51.100.1:5353"];
    let clients = clients.map(|client| rig.network.client(client.parse().unwrap()));
    for client in clients {
        rig.network.send_datagram(client, udp_server(), b"x");
    }
    rig.run();
    let answers = clients.map(|client| count_answers(&rig, client));
    assert_eq!(answers, [0, 1, 0]);
    assert_eq!(rig.refused(Refusal::SourcePort), 2);
    rig.worker.driver.assert_all_returned();
}
