//! Servers that are hostile once a connection is up.

use std::time::Duration;

use rowsync_harness::hostile::{Hostile, PID, columns, message, parameter, report, row, text};

use crate::network::hostile::{MOST_GROWTH, TIMEOUT, Victim, begin, lead, memory, notice};
use crate::support::common::{query, records, rows, run, warnings};

/// In doubt: the commit had been asked for, and what a liar has done is not known.
const IN_DOUBT: &str = "08007";

#[test]
fn a_server_that_answers_without_end_is_given_up() {
    let mut victim = Victim::new("hflood");
    victim.survives("sends notices", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.flood(&notice())
    });
    // However much time it is given.
    victim.timeout = Duration::from_secs(20);
    victim.survives("sends notices, with time", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.flood(&notice())
    });
    victim.timeout = TIMEOUT;
    victim.survives("sends parameters", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.flood_by(|chunk| {
            let one = |n| {
                message(
                    b'S',
                    &parameter(&format!("p{chunk}_{n}"), &"x".repeat(20_000)),
                )
            };
            (0..5).flat_map(one).collect()
        })
    });
    victim.survives("sends notifications", IN_DOUBT, |wire| {
        begin(wire)?;
        let notification = [&PID.to_be_bytes()[..], &text("channel"), &text("payload")].concat();
        wire.flood(&message(b'A', &notification))
    });
    victim.survives("sends rows", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.send(b'T', &columns(1))?;
        wire.flood(&message(b'D', &row(&[b"x"])))
    });
    victim.survives("sends wide rows", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.send(b'T', &columns(1600))?;
        wire.flood(&message(b'D', &row(&[&b""[..]; 1600])))
    });
    victim.survives("describes rows", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.flood(&message(b'T', &columns(1600)))
    });
    victim.survives("sends command tags", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.flood(&message(b'C', &text("INSERT 0 1")))
    });
    victim.survives("sends command tags slowly", IN_DOUBT, |wire| {
        begin(wire)?;
        let tags = message(b'C', &text("INSERT 0 1")).repeat(10_000);
        wire.drip(&tags, Duration::from_millis(1))
    });
    victim.survives("sends a byte now and then", IN_DOUBT, |wire| {
        begin(wire)?;
        wire.drip(&notice().repeat(1000), Duration::from_millis(50))
    });
}

#[test]
fn a_message_too_long_is_not_taken_in() {
    let mut victim = Victim::new("hlong");
    for (tag, length) in [
        (b'E', 100_000_000u32),
        (b'N', 2_000_000_000),
        (b'D', 2_000_000_000),
    ] {
        let what = format!("begins a {} of {length} bytes", tag as char);
        victim.survives(&what, IN_DOUBT, move |wire| {
            begin(wire)?;
            if tag == b'D' {
                wire.send(b'T', &columns(1))?;
            }
            wire.raw(&[tag])?;
            wire.raw(&length.to_be_bytes())?;
            wire.flood(b"Mx")
        });
    }
    for length in [0u32, 3, 2_000_000_000, u32::MAX] {
        victim.survives(
            &format!("gives a tag the length {length}"),
            IN_DOUBT,
            move |wire| {
                begin(wire)?;
                wire.raw(b"C")?;
                wire.raw(&length.to_be_bytes())?;
                wire.flood(b"INSERT 0 1")
            },
        );
    }
}

#[test]
fn what_is_against_the_protocol_ends_the_connection() {
    let mut victim = Victim::new("hproto");
    let mut survives = |what: &str, bytes: Vec<u8>| {
        victim.survives(what, IN_DOUBT, move |wire| {
            begin(wire)?;
            // To the question about the key's types.
            wire.done("SELECT 1")?;
            wire.raw(&bytes)?;
            wire.silence()
        });
    };
    survives("a message of no known type", message(b'y', b"what?"));
    survives("zeros", vec![0; 4096]);
    let copy = [0, 0, 1, 0, 0];
    for kind in [b'G', b'H', b'W'] {
        survives(&format!("a copy, {}", kind as char), message(kind, &copy));
    }
    survives("rows that were not described", message(b'D', &row(&[b"x"])));
    let short = [message(b'T', &columns(3)), message(b'D', &row(&[b"x"]))].concat();
    survives("a row with too few columns", short);
    let beyond = [&1u16.to_be_bytes()[..], &1_000_000u32.to_be_bytes(), b"x"].concat();
    survives(
        "a value longer than its message",
        [message(b'T', &columns(1)), message(b'D', &beyond)].concat(),
    );
    survives("a login, again", message(b'R', &[0, 0, 0, 3]));
    let done = [message(b'n', &[]), message(b'C', &text("INSERT 0 1"))].concat();
    survives(
        "half a message",
        [&done[..], &message(b'Z', b"I")[..3]].concat(),
    );
    survives(
        "answers for two",
        [done.clone(), done.clone(), message(b'Z', b"I")].concat(),
    );
    survives("no answer", message(b'Z', b"I"));
    survives("no answer, many times", message(b'Z', b"I").repeat(10));
    for status in [b'T', b'E', b'?', 0] {
        let what = format!("a transaction that is {status}");
        survives(&what, [&done[..], &message(b'Z', &[status])].concat());
    }
    victim.survives("closes within a message", IN_DOUBT, move |wire| {
        begin(wire)?;
        wire.done("SELECT 1")?;
        wire.raw(&done[..done.len() - 3])
    });
}

#[test]
fn answers_of_other_shapes_do_no_harm() {
    let mut victim = Victim::new("hshape");
    let rows_then =
        |rows: Vec<u8>, tag: &str| [rows, message(b'C', &text(tag)), message(b'Z', b"I")].concat();
    let described = |count: u16, rows: Vec<u8>| [message(b'T', &columns(count)), rows].concat();
    let values: [&[u8]; 3] = [
        b"not json",
        b"\xff\xfe\0\x01",
        b"[\"insert_exists\",[[[[[[[[",
    ];
    let row_of = |value: &[u8]| message(b'D', &row(&[value]));
    let reported = br#"["insert_exists","applied",{"id":{"id":[1,2]}},7,null,null]"#;
    let deep = "[".repeat(100_000);
    let odd: Vec<u8> = values
        .into_iter()
        .chain([&reported[..], deep.as_bytes()])
        .flat_map(row_of)
        .collect();
    let null = message(b'D', &[0, 1, 0xff, 0xff, 0xff, 0xff]);
    for (what, answer) in [
        ("rows", rows_then(described(1, odd), "INSERT 0 1")),
        (
            "nulls",
            rows_then(described(1, null.repeat(100)), "SELECT 1"),
        ),
        (
            "rows without columns",
            rows_then(described(0, message(b'D', &row(&[])).repeat(9)), "X"),
        ),
        (
            "columns without rows",
            rows_then(described(u16::MAX / 2, Vec::new()), "INSERT 0 1"),
        ),
        (
            "a tag of nonsense",
            rows_then(message(b'n', &[]), "\u{1} INSERT 99999999999999999999999"),
        ),
        ("an empty tag", rows_then(message(b'n', &[]), "")),
    ] {
        let met = victim.meet(what, move |wire| {
            begin(wire)?;
            // To the question about the key's types.
            wire.done("SELECT 1")?;
            wire.raw(&answer)?;
            wire.serve()
        });
        assert_eq!(met.records, [""; 0], "{what}");
        assert_eq!(warnings(&met.notices), [], "{what}");
        victim.recovers(met);
    }
}

/// Each answer stays below every bound.
#[test]
fn what_comes_with_good_answers_does_not_pile_up() {
    let victim = Victim::new("hpile");
    let hostile = Hostile::start(|wire| {
        wire.greet()?;
        let notification = [&PID.to_be_bytes()[..], &text("channel"), &text("payload")].concat();
        let many = message(b'A', &notification).repeat(7_500_000 / (notification.len() + 5));
        wire.asked()?;
        // To the question about the key's types.
        wire.done("SELECT 1")?;
        wire.done("INSERT 0 1")?;
        wire.ready(b'I')?;
        loop {
            wire.asked()?;
            wire.raw(&many)?;
            wire.done("INSERT 0 1")?;
            wire.ready(b'I')?;
        }
    });
    let hostile = hostile.expect("a hostile server");
    lead(&victim.fixture.left, hostile.port());
    let mut client = victim.fixture.left.client();
    run(&mut client, "select sync_disconnect()");
    let pid = query(&mut client, "select pg_backend_pid()").remove(0);
    let before = memory(&pid, "VmRSS");
    for id in 1..=12 {
        run(&mut client, &format!("insert into t values ({id}, 'a')"));
    }
    let growth = memory(&pid, "VmHWM") - before;
    assert!(growth < MOST_GROWTH, "grew by {growth} kB");
    assert_eq!(records(&victim.fixture), [""; 0]);
    // What libpq does not free goes with the connection.
    assert_eq!(hostile.connections(), 2);
}

/// Sends an error, and what comes after one.
fn fails_with(fields: &[(u8, &[u8])]) -> Vec<u8> {
    [message(b'E', &report(fields)), message(b'Z', b"I")].concat()
}

#[test]
fn what_an_error_says_is_cut_and_cleaned() {
    let mut victim = Victim::new("herror");
    let long = vec![0xe9; 500_000];
    let all: Vec<(u8, &[u8])> = b"SVMDHWstcdn"
        .iter()
        .map(|code| (*code, &long[..]))
        .collect();
    let longer: Vec<(u8, &[u8])> = [(b'C', &b"23505"[..])]
        .into_iter()
        .chain(all[..6].to_vec())
        .collect();
    for (what, sqlstate, error) in [
        ("long and in no encoding", "23505", fails_with(&longer)),
        (
            "names that are long",
            "22000",
            fails_with(&[(b'C', b"22000"), (b'M', b"x"), (b'n', &long)]),
        ),
        (
            "a state that is none",
            "XX000",
            fails_with(&[(b'C', b"\xff\n'0;"), (b'M', b"x")]),
        ),
        (
            "a state of success",
            "XX000",
            fails_with(&[(b'C', b"00000"), (b'M', b"x")]),
        ),
        // No different from what libpq says where it has no memory for the answer.
        ("nothing", "08007", fails_with(&[])),
        ("no message", "42P01", fails_with(&[(b'C', b"42P01")])),
    ] {
        let met = victim.meet(what, move |wire| {
            begin(wire)?;
            wire.raw(&error)?;
            wire.serve()
        });
        assert_eq!(
            met.records,
            [format!("INSERT|{sqlstate}|1|pending")],
            "{what}"
        );
        let kept =
            "select octet_length(coalesce(message, '') || coalesce(constraint_name, '')) < 20000
                      from sync_queue";
        assert_eq!(rows(&victim.fixture.left, kept), ["t"], "{what}");
        let reported = warnings(&met.notices);
        assert!(
            reported[0].detail().is_some_and(|text| text.len() < 20_000),
            "{what}"
        );
        victim.recovers(met);
    }
    // Other tests write to the same log.
    let log = victim.fixture.left.cluster.log();
    let mut reported = log
        .lines()
        .filter(|line| line.contains("\u{fffd}\u{fffd}\u{fffd}"));
    assert!(
        reported.all(|line| line.len() < 100_000),
        "the log has it all"
    );
}
