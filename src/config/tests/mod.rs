//! Texts in, messages out: what the operator sees, and that no input breaks the loader.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

mod messages;
mod plans;
mod shipped;

fn sources(texts: &[(&str, &str)]) -> Vec<Source> {
    texts
        .iter()
        .map(|(name, text)| Source {
            name: (*name).into(),
            text: (*text).into(),
        })
        .collect()
}

/// The one place that loads: a text's messages, one for each line.
fn report(sources: &[Source]) -> String {
    let (kind, diagnostics) = match load(sources) {
        Ok(loaded) => ("warning: ", loaded.warnings),
        Err(errors) => ("", errors),
    };
    diagnostics
        .iter()
        .map(|diagnostic| format!("{kind}{diagnostic}\n"))
        .collect()
}

fn valid(text: &str) -> Config {
    let sources = sources(&[("echod.toml", text)]);
    load(&sources)
        .unwrap_or_else(|_| panic!("{}", report(&sources)))
        .config
}

fn check(text: &str, expect: &Expect) {
    expect.assert_eq(&report(&sources(&[("echod.toml", text)])));
}

/// A listener with the required keys and these lines.
fn check_listener(protocol: &str, lines: &str, expect: &Expect) {
    let address = if protocol.starts_with("unix") {
        "/run/echod/a.sock"
    } else {
        "127.0.0.1:7"
    };
    check(
        &format!("[listener.a]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n{lines}\n"),
        expect,
    );
}

/// A listener's value for a key, as it is shown.
fn show(listener: &Listener, name: &str) -> Option<String> {
    let key = Section::Listener.keys().find(|key| key.name == name);
    key.expect("there is such a key").show_of(listener)
}

/// All defaults as a text like any other.
fn default_text() -> String {
    let sections = [
        Section::Daemon,
        Section::Control,
        Section::Log,
        Section::Listener,
    ];
    let tables = sections.map(|section| {
        let name = match section {
            Section::Listener => "defaults",
            section => section.name(),
        };
        let keys = section.keys().filter(|key| !key.default.is_empty());
        let lines: String = keys
            .map(|key| format!("{} = {}\n", key.name, key.default))
            .collect();
        format!("[{name}]\n{lines}")
    });
    tables.concat()
}

const TCP: &str = "[listener.a]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:7\"\n";

#[test]
fn the_defaults_are_as_the_table_of_keys_says() {
    let text = format!("{}{TCP}", default_text());
    let mut bare = valid(TCP);
    for listener in bare.listeners.values_mut() {
        // That is the one key which means something more by being written.
        listener.backlog_is_set = true;
    }
    assert_eq!(valid(&text), bare);
}

#[test]
fn without_a_file_there_is_tcp_and_udp_on_loopback() {
    expect![[r#"
        [daemon]
        workers = "auto"
        driver = "auto"
        drain-timeout = "30s"
        shutdown-delay = "0s"
        busy-poll = "off"
        user = ""
        group = ""

        [control]
        # socket is not set
        mode = "0660"
        # group is not set
        operators = []
        admins = []

        [log]
        target = "auto"
        level = "info"
        facility = "daemon"
        connections = false

        [listener.tcp]
        protocol = "tcp"
        address = "localhost:7007"
        reply = "echo"
        one-shot = false
        sockets = "auto"
        # backlog is not set: 1024, or that of a .socket unit
        max-connections = 10000
        when-full = "wait"
        max-per-source = "off"
        idle-timeout = "10m"
        max-lifetime = "off"
        write-stall-timeout = "30s"
        no-delay = true
        keepalive = "1m"
        receive-buffer = "auto"
        send-buffer = "auto"
        allow = []
        deny = []

        [listener.udp]
        protocol = "udp"
        address = "localhost:7007"
        reply = "echo"
        sockets = "auto"
        receive-buffer = "auto"
        send-buffer = "auto"
        allow = []
        deny = []
        refuse-source-ports = "default"
    "#]]
    .assert_eq(&render(&Config::embedded()));
}

#[test]
fn a_later_source_overrides_key_by_key_and_lists_as_a_whole() {
    let main = "[defaults]\nbacklog = 5\nallow = [\"10.0.0.0/8\"]\n[listener.a]\nprotocol = \"tcp\"\n\
                address = [\"127.0.0.1:7\", \"127.0.0.1:8\"]\nreply = \"upper\"\n";
    let first = "[listener.a]\naddress = [\"127.0.0.1:9\"]\n[defaults]\nallow = [\"192.0.2.1\"]\n";
    let second = "[listener.a]\nbacklog = 9\n[daemon]\nworkers = 2\n";
    let config = load(&sources(&[
        ("echod.toml", main),
        ("10.toml", first),
        ("20.toml", second),
    ]))
    .unwrap()
    .config;
    let listener = &config.listeners["a"];
    let shown = ["address", "backlog", "reply", "allow"].map(|key| show(listener, key).unwrap());
    assert_eq!(
        shown,
        ["\"127.0.0.1:9\"", "9", "\"upper\"", "[\"192.0.2.1/32\"]"]
    );
    assert_eq!(config.daemon.workers, Some(2));
}

#[test]
fn defaults_that_have_no_meaning_for_a_protocol_do_nothing_there() {
    let udp = "[listener.u]\nprotocol = \"udp\"\naddress = \"*:7\"\n";
    let unix = "[listener.x]\nprotocol = \"unix-stream\"\naddress = \"x.sock\"\n";
    let defaults = "[defaults]\nbacklog = 1\nno-delay = false\nmax-lifetime = \"1h\"\n";
    assert_eq!(valid(&format!("{defaults}{udp}")), valid(udp));
    let defaults = "[defaults]\nsockets = 4\nkeepalive = \"off\"\nallow = [\"10.0.0.0/8\"]\n";
    assert_eq!(valid(&format!("{defaults}{unix}")), valid(unix));
}

#[test]
fn the_short_forms_of_addresses_are_two_each_and_the_second_may_be_missing() {
    let shown = |address: &str| {
        let config = valid(&TCP.replace("\"127.0.0.1:7\"", address));
        let listener = &config.listeners["a"];
        let each = listener.addresses.iter().map(|address| match address {
            Address::Inet {
                address,
                optional: true,
            } => format!("({address})"),
            other => other.to_string(),
        });
        (
            each.collect::<Vec<_>>().join(" "),
            show(listener, "address").unwrap(),
        )
    };
    let pair = |one: &str, other: &str| (one.to_string(), other.to_string());
    assert_eq!(shown("\"*:7\""), pair("0.0.0.0:7 ([::]:7)", "\"*:7\""));
    assert_eq!(
        shown("\"localhost:0\""),
        pair("127.0.0.1:0 ([::1]:0)", "\"localhost:0\"")
    );
    assert_eq!(
        shown("[\"0.0.0.0:7\", \"[::]:7\"]"),
        pair("0.0.0.0:7 [::]:7", "[\"0.0.0.0:7\", \"[::]:7\"]")
    );
    assert_eq!(
        shown("\"[fe80::1%3]:7\""),
        pair("[fe80::1%3]:7", "\"[fe80::1%3]:7\"")
    );
}

#[test]
fn a_mapped_network_is_the_ipv4_network() {
    let config = valid(&format!(
        "{TCP}deny = [\"::ffff:10.0.0.0/104\", \"10.0.0.0/8\"]"
    ));
    assert_eq!(
        show(&config.listeners["a"], "deny").unwrap(),
        "[\"10.0.0.0/8\"]"
    );
}

#[test]
fn durations_and_sizes_are_shown_in_one_form() {
    let shown = |key: &str, value: &str| {
        show(&valid(&format!("{TCP}{key} = {value}")).listeners["a"], key).unwrap()
    };
    assert_eq!(shown("idle-timeout", "\"90s\""), "\"1m30s\"");
    assert_eq!(shown("idle-timeout", "\"1d 2h 250ms\""), "\"1d2h250ms\"");
    assert_eq!(shown("idle-timeout", "\"90d\""), "\"90d\"");
    assert_eq!(shown("send-buffer", "65536"), "\"64KiB\"");
    assert_eq!(shown("send-buffer", "\"4097\""), "\"4097B\"");
    assert_eq!(shown("send-buffer", "\"1024 KiB\""), "\"1MiB\"");
}

#[test]
fn source_ports_are_shown_in_one_form() {
    let shown = |value: &str| {
        let text = TCP.replace("tcp", "udp") + &format!("refuse-source-ports = {value}\n");
        show(&valid(&text).listeners["a"], "refuse-source-ports").unwrap()
    };
    assert_eq!(shown("[19, 7, 7]"), "[7, 19]");
    assert_eq!(shown("[9, \"5-7\", 8, \"007-7\"]"), "[\"5-9\"]");
    assert_eq!(shown("[\"0-65535\"]"), "[\"0-65535\"]");
    assert_eq!(shown("[]"), "\"none\"");
    assert_eq!(shown("\"default\""), "\"default\"");
    // A list that names the ports of the default does not follow the ports that are served.
    let list = "[11211, 5353, 2049, 1900, \"0-1023\"]";
    assert_eq!(shown(list), "[\"0-1023\", 1900, 2049, 5353, 11211]");
}

/// A value for each key, some of them wrong.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        (0..5000_u32).prop_map(|number| number.to_string()),
        "[a-z0-9:*/.\\[\\]-]{0,12}".prop_map(|text| quote(&text)),
        (0..200_000_u64).prop_map(|number| format!("\"{number}ms\"")),
        (0..200_000_u64).prop_map(|number| format!("\"{number}KiB\"")),
        (0..0o777_u32).prop_map(|mode| format!("\"{mode:04o}\"")),
        Just("\"auto\"".into()),
        Just("\"off\"".into()),
        Just("true".into()),
        Just("[\"10.0.0.0/8\", \"2001:db8::/32\"]".into()),
        Just("[7, \"1024-2047\", 65536]".into()),
        Just("{ a = 1 }".into()),
        Just("1979-05-27".into()),
        any::<String>().prop_map(|text| quote(&text)),
    ]
}

fn any_lines(sections: &'static [Section]) -> impl Strategy<Value = String> {
    let keys: Vec<&Key> = KEYS
        .iter()
        .filter(|key| sections.contains(&key.section))
        .collect();
    let line = (prop::sample::select(keys), any_value());
    prop::collection::vec(line, 0..6).prop_map(|lines| {
        let lines: BTreeMap<_, _> = lines
            .into_iter()
            .map(|(key, value)| (key.name, value))
            .collect();
        lines
            .into_iter()
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect()
    })
}

/// What is rendered must load again, to the same.
fn round_trip(text: &str) {
    let Ok(loaded) = load(&sources(&[("echod.toml", text)])) else {
        return;
    };
    let rendered = render(&loaded.config);
    assert_eq!(valid(&rendered), loaded.config, "{rendered}");
}

#[test]
fn a_key_that_is_set_everywhere_comes_back() {
    round_trip(
        "[daemon]\nworkers = 3\ndriver = \"io_uring\"\nbusy-poll = \"50us\"\ndrain-timeout = \"0s\"\nshutdown-delay = \"1500ms\"\n\
         user = \"echod\"\ngroup = \"netops\"\n\
         [control]\nsocket = \"/run/a \\\"b\\\".sock\"\nmode = \"600\"\ngroup = \"echod\"\n\
         [log]\ntarget = \"syslog\"\nlevel = \"off\"\nfacility = \"local7\"\nconnections = true\n\
         [listener.\"a.b\"]\nprotocol = \"tcp\"\naddress = [\"localhost:7\", \"10.0.0.1:8\"]\nreply = \"discard\"\n\
         one-shot = true\nsockets = 2\nbacklog = 2147483647\nmax-connections = 1\nwhen-full = \"reset\"\n\
         max-per-source = 7\nidle-timeout = \"off\"\nmax-lifetime = \"999d\"\nwrite-stall-timeout = \"1ms\"\n\
         no-delay = false\nkeepalive = \"off\"\nreceive-buffer = \"1KiB\"\nsend-buffer = \"1GiB\"\n\
         allow = [\"10.0.0.0/8\"]\ndeny = [\"::/0\"]\n\
         [listener.u]\nprotocol = \"udp\"\naddress = \"*:7\"\nrefuse-source-ports = [7, \"1024-2047\"]\n\
         [listener.x]\nprotocol = \"unix-datagram\"\naddress = \"run/é\\u007f.sock\"\nmode = \"0777\"\n",
    );
}

/// A backlog that is only the default leaves that of a `.socket` unit alone, in whatever way the
/// configuration is copied.
#[test]
fn whether_a_backlog_was_written_is_known() {
    let is_set = |text: &str| {
        let is_set = |text: &str| valid(text).listeners["a"].backlog_is_set;
        assert_eq!(is_set(text), is_set(&render(&valid(text))), "{text}");
        is_set(text)
    };
    assert!(!is_set(TCP));
    assert!(is_set(&format!("{TCP}backlog = 1024\n")));
    assert!(is_set(&format!("[defaults]\nbacklog = 1024\n{TCP}")));
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in any::<String>()) {
        let _ = load(&sources(&[("a.toml", &text)]));
    }

    #[test]
    fn no_words_of_toml_make_the_loader_panic(
        text in "((listener|daemon|a|é|protocol|address|\\[|\\]|\\[\\[|=|\"|'|\"\"\"|\\.|,|#|\\{|\\}|\t| |\n|\r\n|0|-|1|\u{feff}){0,3}){0,20}",
    ) {
        let _ = load(&sources(&[("a.toml", &text), ("b.toml", &text)]));
    }

    #[test]
    fn no_mutation_of_a_valid_text_makes_the_loader_panic(
        at in any::<prop::sample::Index>(), len in 0..20_usize, with in "\\PC{0,4}|[\\[\\]\"=\n]{0,3}",
    ) {
        let text = render(&Config::embedded());
        let characters: Vec<char> = text.chars().collect();
        let start = at.index(characters.len());
        let end = (start + len).min(characters.len());
        let mutated: String =
            characters[..start].iter().copied().chain(with.chars()).chain(characters[end..].iter().copied()).collect();
        round_trip(&mutated);
    }

    #[test]
    fn what_was_typed_anyhow_is_refused_or_comes_back(
        daemon in any_lines(&[Section::Daemon]),
        control in any_lines(&[Section::Control]),
        log in any_lines(&[Section::Log]),
        listener in any_lines(&[Section::Listener]),
    ) {
        round_trip(&format!("[daemon]\n{daemon}[control]\n{control}[log]\n{log}{TCP}"));
        round_trip(&format!("[defaults]\n{listener}{TCP}"));
        round_trip(&format!("{TCP}{listener}"));
    }

    #[test]
    fn every_valid_value_comes_back(
        at in prop::sample::select((0..Protocol::ALL.len()).collect::<Vec<_>>()),
        picks in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), KEYS.len()),
    ) {
        let chosen = VALID[at].iter().zip(&picks).filter_map(|((key, values), pick)| {
            let value = values.get((*pick)?.index(values.len().max(1)))?;
            Some((key, value))
        });
        let mut tables: BTreeMap<Section, String> = BTreeMap::new();
        for (key, value) in chosen {
            *tables.entry(key.section).or_default() += &format!("{} = {value}\n", key.name);
        }
        let lines = |section| tables.get(&section).map_or("", String::as_str);
        let text = format!(
            "[daemon]\n{}[control]\n{}[log]\n{}{}{}",
            with_user(lines(Section::Daemon)),
            lines(Section::Control),
            lines(Section::Log),
            required(Protocol::ALL[at]),
            lines(Section::Listener),
        );
        prop_assert_eq!(valid(&render(&valid(&text))), valid(&text));
    }
}

/// The keys, each with values that it takes.
type Takes = Vec<(&'static Key, Vec<&'static str>)>;

/// For each protocol: the values out of a pool that each key takes.
static VALID: LazyLock<Vec<Takes>> = LazyLock::new(|| {
    let pool = [
        "1",
        "2",
        "5000",
        "4097",
        "true",
        "false",
        "\"auto\"",
        "\"off\"",
        "\"epoll\"",
        "\"io_uring\"",
        "\"upper\"",
        "\"discard\"",
        "\"wait\"",
        "\"reset\"",
        "\"syslog\"",
        "\"stderr\"",
        "\"trace\"",
        "\"local3\"",
        "\"0s\"",
        "\"50us\"",
        "\"1s\"",
        "\"1h1ms\"",
        "\"999d\"",
        "\"7KiB\"",
        "\"1GiB\"",
        "\"600\"",
        "\"0777\"",
        "\"a \\\\ \\\" é\"",
        "[]",
        "[\"10.0.0.0/8\", \"::1\"]",
        "[\"0.0.0.0/0\"]",
        "\"default\"",
        "\"none\"",
        "[19, 7]",
        "[\"0-1023\", 5353, 5354]",
    ];
    let takes = |protocol, key: &Key, value: &str| {
        let line = format!("{} = {value}\n", key.name);
        let text = match key.section {
            Section::Listener => format!("{}{line}", required(protocol)),
            Section::Daemon => format!("[daemon]\n{}{}", with_user(&line), required(protocol)),
            section => format!("[{}]\n{line}{}", section.name(), required(protocol)),
        };
        load(&sources(&[("a", &text)])).is_ok()
    };
    let values = |protocol, key| {
        pool.into_iter()
            .filter(|value| takes(protocol, key, value))
            .collect()
    };
    Protocol::ALL
        .map(|protocol| {
            KEYS.iter()
                .map(|key| (key, values(protocol, key)))
                .collect()
        })
        .to_vec()
});

/// Lines of `[daemon]` with a user where there is a group, which goes with one only.
fn with_user(lines: &str) -> String {
    let alone = lines.contains("group = ") && !lines.contains("user = ");
    let user = if alone { "user = \"a\"\n" } else { "" };
    format!("{user}{lines}")
}

fn required(protocol: Protocol) -> String {
    let address = if protocol.is_unix() { "a/b" } else { "*:7" };
    format!(
        "[listener.\"a.b\"]\nprotocol = \"{}\"\naddress = \"{address}\"\n",
        protocol.name()
    )
}

#[test]
fn the_pool_has_a_value_for_every_key() {
    for (index, key) in KEYS.iter().enumerate() {
        let required = matches!(key.name, "protocol" | "address");
        assert!(
            required || VALID.iter().any(|values| values[index].1.len() > 1),
            "{}",
            key.name
        );
    }
}

/// How many errors a text has: those that are shown, and what stands behind them.
fn count_errors(text: &str) -> (usize, String) {
    let errors = load(&sources(&[("a.toml", text)])).unwrap_err();
    let last = errors.last().map(ToString::to_string);
    (errors.len(), last.unwrap_or_default())
}

#[test]
fn no_more_than_a_hundred_errors_are_shown_and_the_others_are_counted() {
    let all = |count: usize| format!("{TCP}[daemon]\n{}", "a b\n".repeat(count));
    assert_eq!(count_errors(&all(100)).0, 100);
    let (count, last) = count_errors(&all(101));
    assert_eq!((count, last.as_str()), (101, "1 more error not shown"));
    let (count, last) = count_errors(&all(20_000));
    assert_eq!((count, last.as_str()), (101, "19900 more errors not shown"));
    // They are the first ones, in whatever order they were found.
    let unknown: String = (0..200).map(|n| format!("k{} = {n}\n", 199 - n)).collect();
    let text = format!("[daemon]\n{unknown}{TCP}");
    let errors = load(&sources(&[("a.toml", &text)])).unwrap_err();
    let lines: Vec<_> = errors.iter().filter_map(|error| error.line).collect();
    assert_eq!(lines, (2..102).collect::<Vec<_>>());
}

/// One mebibyte of what costs most in proportion to its length. A check whose time grows with the
/// square of that would take minutes for each.
#[test]
fn a_mebibyte_of_anything_is_judged_in_linear_time() {
    const BYTES: usize = 1 << 20;
    let repeat = |text: &str| text.repeat(BYTES / text.len());
    let number = |line: fn(usize) -> String| {
        let mut text = String::new();
        let lines = (0..).map(line);
        for line in lines {
            text += &line;
            if text.len() >= BYTES {
                break;
            }
        }
        text
    };
    let address = |n: usize| format!("\"127.{}.{}.{}:7\",", n >> 16, n >> 8 & 255, n & 255);
    let unix = "[listener.u]\nprotocol = \"unix-stream\"\naddress = [";
    let texts = [
        repeat("a\n"),
        repeat("a b "),
        repeat("[[listener.a]]\n"),
        repeat("[a"),
        repeat("[daemon]\nworkers = 0\n"),
        format!("a = {}", repeat("[")),
        format!("a = {}", repeat("{a.a.a.a = ")),
        number(|n| format!("key{n} = 1\n")),
        number(|n| format!("k{:07} = 1\n", 9_999_999 - n)),
        number(|n| format!("[listener.l{n}]\nx = 1\n")),
        number(|n| format!("[listener.l{n}]\nprotocol = \"tcp\"\naddress = \"*:7\"\n")),
        format!(
            "{TCP}[defaults]\nallow = [{}]",
            number(|n| format!("\"10.0.{}/8\",", n))
        ),
        format!(
            "[listener.a]\nprotocol = \"tcp\"\naddress = [{}]",
            number(address)
        ),
        format!(
            "[listener.a]\nprotocol = \"tcp\"\naddress = [{}]",
            repeat("\"127.0.0.1:7\",")
        ),
        format!("{unix}{}]", repeat("\"/run/echod/a.sock\",\n")),
        {
            let networks: String = (0..30_000)
                .map(|n| format!("\"10.{}.{}.0/24\",", n >> 8, n & 255))
                .collect();
            let listener =
                |n: usize| format!("[listener.l{n}]\nprotocol = \"tcp\"\naddress = \"*:{n}\"\n");
            let listeners: String = (1..10_000).map(listener).collect();
            format!("[defaults]\nallow = [{networks}]\n{listeners}")
        },
    ];
    for text in texts {
        match load(&sources(&[("a.toml", &text)])) {
            Ok(loaded) => assert!(loaded.warnings.len() <= 101),
            Err(errors) => assert!(errors.len() <= 101, "{}", errors.len()),
        }
    }
}
