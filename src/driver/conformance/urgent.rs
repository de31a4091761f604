//! The promise about urgent data, before which a read stops however much there is.

use super::harness::Harness;
use super::stage::{Answer, Stage};

// 12. The peer's bytes, all of them.

pub(super) fn what_comes_behind_urgent_data_is_received<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    for _ in 0..20 {
        let (mut peer, connection) = stage.connection(&address);
        stage.until_quiet();
        // All of it is there before the driver looks.
        stage.net.write(&mut peer, b"one");
        stage.net.write_urgent(&mut peer);
        stage.net.write(&mut peer, b"two");
        // The urgent byte itself is not part of the stream.
        stage.until("all is received", |stage| {
            stage.received(connection) == b"onetwo"
        });
    }
}
