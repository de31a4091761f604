//! Measurements that could be, for tests: the same ones each time.

use std::time::Duration;

use super::header::Header;
use super::measured::Measured;
use crate::probe::args::Sizes;
use crate::probe::latency::Latencies;

/// Of a service on this machine.
pub(super) fn header() -> Header {
    Header {
        target: "tcp://127.0.0.1:7007".parse().expect("a URL"),
        connections: 50,
        depth: Some(4),
        sizes: Sizes {
            least: 64,
            most: 64,
        },
        threads: 1,
        driver: "io_uring",
    }
}

/// So many times around a median, as services have them: a steep rise and a long tail.
pub(super) fn latencies(count: u32, median: Duration, spread: f64) -> Latencies {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let factor = (spread * random.normal()).exp();
        latencies.record(median.mul_f64(factor));
    }
    latencies
}

/// The same time, so many times.
pub(super) fn equal(count: u32, time: Duration) -> Latencies {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        latencies.record(time);
    }
    latencies
}

/// Ten seconds in which these were measured, all else being well.
pub(super) fn measured(latencies: Latencies) -> Measured {
    let messages = latencies.len();
    Measured {
        duration: Duration::from_secs(10),
        sent: messages,
        messages,
        finished: messages,
        bytes: messages * 64,
        latencies,
        busy: 0.4,
        ..Measured::default()
    }
}

/// Rates, each twice the one before, the last two of which are too much.
pub(super) fn curve(rates: u32) -> Vec<Measured> {
    let measure = |index: u32| {
        let rate = 1000 << index;
        let behind = (index + 3).saturating_sub(rates);
        let median = Duration::from_micros(40 + 20 * u64::from(index)) * 10_u32.pow(behind);
        let latencies = latencies(20_000, median, 0.3 + 0.1 * f64::from(index));
        let mut measured = measured(latencies);
        measured.rate = Some(rate);
        measured.sent = rate * 10;
        measured.messages = rate * 10 / u64::from(behind.max(1));
        measured.finished = measured.messages;
        measured.bytes = measured.messages * 64;
        measured
    };
    (0..rates).map(measure).collect()
}

/// Numbers that look random: xorshift64*.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        (high as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// After Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
