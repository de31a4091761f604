//! All latencies of a measurement for HdrHistogram's tools: the percentile distribution as text,
//! `.hgrm`, which HistogramPlotter, hdr-plot and gnuplot read.
//!
//! In milliseconds, as wrk2 writes it and the plotters expect it, to the nanosecond. A plotter takes
//! a file for each line that it draws, so several rates are several files. Never writes one.
//!
//! The compressed log (`.hlog`) is not written: it is for intervals of a long run, of which a
//! measurement is only one, and would bring three libraries for compression and parsing.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::measured::Measured;

/// So many lines for each halving of what is left to 100 %, as the other implementations have it.
const TICKS_PER_HALF: u32 = 5;

const NANOSECONDS_PER_MILLISECOND: f64 = 1e6;

/// The files to write and what is in them: the one that was asked for, or, where there are several
/// rates, one for each with the rate in its name: `load.hgrm`, `load-20000.hgrm`.
#[must_use]
pub(super) fn files(path: &Path, all: &[Measured]) -> Vec<(PathBuf, String)> {
    if let [one] = all {
        return vec![(path.to_owned(), distribution(one))];
    }
    let file = |(index, one): (usize, &Measured)| {
        let again = all[..index]
            .iter()
            .filter(|other| other.rate == one.rate)
            .count();
        (with_rate(path, one.rate, again), distribution(one))
    };
    all.iter().enumerate().map(file).collect()
}

/// A rate that is measured again has its number behind it, so that no file replaces another.
fn with_rate(path: &Path, rate: Option<u64>, again: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(rate.map_or("-unlimited".to_owned(), |rate| format!("-{rate}")));
    if again > 0 {
        name.push(format!("-{}", again + 1));
    }
    if let Some(extension) = path.extension() {
        name.push(OsString::from("."));
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The percentile distribution of one measurement.
#[must_use]
pub(super) fn distribution(measured: &Measured) -> String {
    let histogram = measured.latencies.histogram();
    let milliseconds = |nanoseconds: f64| nanoseconds / NANOSECONDS_PER_MILLISECOND;
    let longest = measured.latencies.max().as_nanos() as f64;
    let mut text = format!(
        "{:>15} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        // The histogram rounds up; the longest is known exactly.
        let value = milliseconds((step.value_iterated_to() as f64).min(longest));
        let quantile = step.quantile_iterated_to();
        write!(text, "{value:>15.6} {quantile:.12} {total:>10} ").expect("a string takes all");
        // As wrk2 has it: plotters leave this line out, for nothing can be drawn at infinity.
        if quantile < 1.0 {
            writeln!(text, "{:>14.2}", 1.0 / (1.0 - quantile)).expect("a string takes all");
        } else {
            writeln!(text, "{:>14}", "inf").expect("a string takes all");
        }
    }
    let (mean, deviation) = if histogram.is_empty() {
        (0.0, 0.0)
    } else {
        (histogram.mean(), histogram.stdev())
    };
    let buckets = histogram.buckets();
    let sub_buckets = 2 * 10_u64.pow(histogram.sigfig().into());
    text + &format!(
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]\n\
         #[Max     = {:>12.6}, Total count    = {:>12}]\n\
         #[Buckets = {buckets:>12}, SubBuckets     = {:>12}]\n\
         #[Unit    = milliseconds]\n",
        milliseconds(mean),
        milliseconds(deviation),
        milliseconds(longest),
        histogram.len(),
        sub_buckets.next_power_of_two(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;

    use super::super::sample;
    use super::*;

    #[test]
    fn a_distribution_is_what_the_plotters_read() {
        let latencies = sample::latencies(100, Duration::from_micros(85), 0.4);
        expect![[r#"
                      Value     Percentile TotalCount 1/(1-Percentile)

                   0.036031 0.000000000000          1           1.00
                   0.053279 0.100000000000         10           1.11
                   0.060927 0.200000000000         20           1.25
                   0.067647 0.300000000000         31           1.43
                   0.077439 0.400000000000         40           1.67
                   0.084351 0.500000000000         50           2.00
                   0.086591 0.550000000000         55           2.22
                   0.091135 0.600000000000         61           2.50
                   0.094079 0.650000000000         66           2.86
                   0.099647 0.700000000000         71           3.33
                   0.109311 0.750000000000         76           4.00
                   0.111103 0.775000000000         79           4.44
                   0.116031 0.800000000000         81           5.00
                   0.118783 0.825000000000         83           5.71
                   0.130623 0.850000000000         86           6.67
                   0.133119 0.875000000000         88           8.00
                   0.144895 0.887500000000         89           8.89
                   0.150527 0.900000000000         91          10.00
                   0.154239 0.912500000000         92          11.43
                   0.157951 0.925000000000         93          13.33
                   0.163967 0.937500000000         94          16.00
                   0.164735 0.943750000000         95          17.78
                   0.174207 0.950000000000         96          20.00
                   0.174207 0.956250000000         96          22.86
                   0.175871 0.962500000000         97          26.67
                   0.175871 0.968750000000         97          32.00
                   0.198271 0.971875000000         98          35.56
                   0.198271 0.975000000000         98          40.00
                   0.198271 0.978125000000         98          45.71
                   0.213503 0.981250000000         99          53.33
                   0.213503 0.984375000000         99          64.00
                   0.213503 0.985937500000         99          71.11
                   0.213503 0.987500000000         99          80.00
                   0.213503 0.989062500000         99          91.43
                   0.214101 0.990625000000        100         106.67
                   0.214101 1.000000000000        100            inf
            #[Mean    =     0.091507, StdDeviation   =     0.037691]
            #[Max     =     0.214101, Total count    =          100]
            #[Buckets =           32, SubBuckets     =         2048]
            #[Unit    = milliseconds]
        "#]]
        .assert_eq(&distribution(&sample::measured(latencies)));
    }

    #[test]
    fn lines_have_four_columns_that_never_fall() {
        let latencies = sample::latencies(50_000, Duration::from_secs(60), 0.7);
        let longest = latencies.max().as_secs_f64() * 1e3;
        let text = distribution(&sample::measured(latencies));
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                assert!(
                    line.starts_with(' '),
                    "{line:?}: hdr-plot wants a gap before the first column"
                );
                line.split_whitespace()
                    .map(|cell| cell.parse().expect("a number"))
                    .collect()
            })
            .collect();
        assert!(rows.iter().all(|row| row.len() == 4));
        for column in 0..4 {
            assert!(rows.is_sorted_by(|one, next| one[column] <= next[column]));
        }
        let last = rows.last().expect("some");
        assert_eq!((last[1], last[2]), (1.0, 50_000.0));
        assert!((last[0] - longest).abs() < 1e-5, "{last:?} {longest}");
    }

    #[test]
    fn nothing_is_an_empty_distribution() {
        expect![[r#"
                      Value     Percentile TotalCount 1/(1-Percentile)

            #[Mean    =     0.000000, StdDeviation   =     0.000000]
            #[Max     =     0.000000, Total count    =            0]
            #[Buckets =           32, SubBuckets     =         2048]
            #[Unit    = milliseconds]
        "#]]
        .assert_eq(&distribution(&Measured::default()));
    }

    #[test]
    fn several_rates_are_several_files() {
        let names = |path: &str, rates: &[u64]| -> Vec<String> {
            let measured = |rate: &u64| Measured {
                rate: Some(*rate),
                ..Measured::default()
            };
            let all: Vec<Measured> = rates.iter().map(measured).collect();
            let files = files(Path::new(path), &all);
            files
                .iter()
                .map(|(path, _)| path.display().to_string())
                .collect()
        };
        assert_eq!(names("a/load.hgrm", &[5]), ["a/load.hgrm"]);
        assert_eq!(
            names("a/load.hgrm", &[5, 10]),
            ["a/load-5.hgrm", "a/load-10.hgrm"]
        );
        assert_eq!(names("load", &[5, 5]), ["load-5", "load-5-2"]);
    }
}
