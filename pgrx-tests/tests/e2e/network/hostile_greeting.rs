//! Servers that are hostile before a connection is up.

use std::time::Duration;

use rowsync_harness::Side;
use rowsync_harness::hostile::{ENDLESS, PID, message, parameter, report, text};

use crate::network::hostile::{Victim, small_parameters};
use crate::support::common::{rows, table};

const MORE: &[u8] = &[b'x'; 64 * 1024];

#[test]
fn a_server_that_never_lets_in_is_given_up() {
    let mut victim = Victim::new("hlogin");
    victim.survives("asks for passwords without reading them", "08001", |wire| {
        wire.startup()?;
        wire.flood(&message(b'R', &3i32.to_be_bytes()))
    });
    victim.survives("asks for passwords one by one", "08006", |wire| {
        wire.startup()?;
        loop {
            wire.ask(5, b"salt")?;
            wire.read()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    victim.survives("says nothing", "08006", |wire| wire.silence());
    victim.survives("says a byte now and then", "08006", |wire| {
        wire.startup()?;
        wire.drip(&message(b'R', &[0; 1000]), Duration::from_millis(100))
    });
    victim.survives(
        "says a byte now and then when the password was right",
        "08006",
        |wire| {
            wire.log_in()?;
            let notice = message(b'N', &report(&[(b'S', b"NOTICE"), (b'M', b"wait")]));
            wire.drip(&notice.repeat(1000), Duration::from_millis(20))
        },
    );
    victim.survives("closes at once", "08001", |_| Ok(()));
    victim.survives("closes within a message", "08001", |wire| {
        wire.startup()?;
        wire.raw(&message(b'R', &[0; 4])[..6])
    });
}

/// Of the kernel's own timeout, which would end it as well, the server's owner may do without.
#[test]
fn passwords_that_nobody_reads_are_not_waited_for() {
    let mut victim = Victim::new("hunread");
    let user = &victim.fixture.left.user;
    let long = "x".repeat(5_000);
    let Side { password, .. } = &victim.fixture.right;
    let mapping = format!("alter user mapping for {user} server dst options");
    victim.fixture.left.exec(&format!(
        "alter server dst options (add tcp_user_timeout '0'); {mapping} (set password '{long}')"
    ));
    let honest = format!("{mapping} (set password '{password}')");
    let met = victim.meet("asks often and reads nothing", |wire| {
        wire.startup()?;
        wire.raw(&message(b'R', &3i32.to_be_bytes()).repeat(10_000))?;
        std::thread::sleep(ENDLESS);
        Ok(())
    });
    assert_eq!(met.records, ["INSERT|08001|1|pending"]);
    victim.fixture.left.exec(&honest);
    victim.recovers(met);
}

#[test]
fn ways_to_log_in_that_are_not_ours_are_refused() {
    let mut victim = Victim::new("hauth");
    // KerberosV5, SCM credentials, GSSAPI, SSPI, one that does not exist.
    for kind in [2, 6, 7, 9, 4711] {
        victim.survives(&format!("asks for way {kind}"), "08001", move |wire| {
            wire.startup()?;
            wire.ask(kind, &[])?;
            wire.silence()
        });
    }
    victim.survives("offers mechanisms that do not exist", "08001", |wire| {
        wire.startup()?;
        wire.ask(10, b"SCRAM-MD4\0OTHER\0\0")?;
        wire.silence()
    });
    victim.survives("goes on with what was not begun", "08001", |wire| {
        wire.startup()?;
        wire.ask(11, b"r=x,s=eA==,i=4096")?;
        wire.silence()
    });
    // Without a password nobody is let in, so no server can be made to accept another's session.
    let met = victim.meet("asks for nothing", |wire| {
        wire.startup()?;
        wire.ask(0, &[])?;
        wire.welcome("15.0")?;
        wire.serve()
    });
    assert_eq!(met.records, ["INSERT|2F003|1|pending"]);
    victim.recovers(met);
}

/// libpq computes what it is asked to, in one go: the time is the server's choice, the end is not.
#[test]
fn a_costly_password_exchange_ends_with_the_deadline() {
    let mut victim = Victim::new("hscram");
    victim.survives("asks for half a million iterations", "08006", |wire| {
        wire.startup()?;
        wire.ask(10, b"SCRAM-SHA-256\0\0")?;
        let (_, first) = wire.read()?;
        let nonce = String::from_utf8_lossy(&first)
            .split_once("r=")
            .map(|(_, r)| r.to_owned());
        let challenge = format!("r={}x,s=c2FsdHNhbHQ=,i=500000", nonce.unwrap_or_default());
        wire.ask(11, challenge.as_bytes())?;
        wire.silence()
    });
}

#[test]
fn a_server_that_greets_without_end_is_given_up() {
    let mut victim = Victim::new("hgreet");
    let notice = message(
        b'N',
        &report(&[(b'S', b"NOTICE"), (b'C', b"00000"), (b'M', b"x")]),
    );
    victim.survives("sends notices", "08001", move |wire| {
        wire.log_in()?;
        wire.flood(&notice)
    });
    victim.survives("sends parameters", "08001", |wire| {
        wire.log_in()?;
        wire.flood_by(small_parameters)
    });
    let notification = [&PID.to_be_bytes()[..], &text("channel"), &text("payload")].concat();
    victim.survives("sends notifications", "08001", move |wire| {
        wire.log_in()?;
        wire.flood(&message(b'A', &notification))
    });
    for (tag, length) in [
        (b'N', 2_000_000_000u32),
        (b'E', 100_000_000),
        (b'E', u32::MAX),
    ] {
        victim.survives(
            &format!("sends {length} bytes of {}", tag as char),
            "08001",
            move |wire| {
                wire.log_in()?;
                wire.raw(&[tag])?;
                wire.raw(&length.to_be_bytes())?;
                wire.raw(b"SERROR\0C08000\0M")?;
                wire.flood(MORE)
            },
        );
    }
    victim.survives(
        "sends an endless error instead of a greeting",
        "08001",
        |wire| {
            wire.startup()?;
            wire.raw(b"E")?;
            wire.flood(MORE)
        },
    );
}

#[test]
fn what_a_server_says_of_itself_is_not_believed() {
    let mut victim = Victim::new("hself");
    for version in ["0", "", "-1.-1", "99999999999999999999"] {
        let met = victim.meet(&format!("has version {version:?}"), move |wire| {
            wire.log_in()?;
            for (name, value) in [
                ("client_encoding", "SQL_ASCII"),
                ("standard_conforming_strings", "off"),
                ("is_superuser", "on"),
            ] {
                wire.send(b'S', &parameter(name, value))?;
            }
            wire.welcome(version)?;
            wire.introduce()?;
            wire.serve()
        });
        // It says that it has the row, and there is no way to know better.
        assert_eq!(met.records, [""; 0]);
        assert_eq!(
            rows(
                &victim.fixture.right,
                &format!("select * from t where id = {}", met.id)
            ),
            [""; 0]
        );
        victim.recovers(met);
    }
    assert_eq!(table(&victim.fixture.right, "t").len(), 4);
}

/// What was said before a connection failed is cut before it is kept or logged.
#[test]
fn long_last_words_are_cut() {
    let mut victim = Victim::new("hwords");
    let met = victim.meet("refuses at length", |wire| {
        wire.log_in()?;
        let words = "\u{20ac}".repeat(30_000);
        wire.send(
            b'E',
            &report(&[(b'S', b"FATAL"), (b'C', b"28000"), (b'M', words.as_bytes())]),
        )
    });
    assert_eq!(met.records, ["INSERT|28000|1|pending"]);
    let length = "select octet_length(message) between 1000 and 5000 from sync_err_rec";
    assert_eq!(rows(&victim.fixture.left, length), ["t"]);
    victim.recovers(met);
}
