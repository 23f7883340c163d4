//! Servers that are hostile behind a local socket: what is read from one is not counted, so the deadlines
//! alone end it.

use rowsync_harness::hostile::{PID, message, text};

use crate::network::hostile::{Victim, begin, notice, small_parameters};

#[test]
fn a_server_behind_a_local_socket_that_greets_without_end_is_given_up() {
    let mut victim = Victim::new("hlocalgreet");
    victim.local = true;
    victim.survives("sends notices", "08006", |wire| {
        wire.log_in()?;
        wire.flood(&notice())
    });
    victim.survives("sends parameters", "08006", |wire| {
        wire.log_in()?;
        wire.flood_by(small_parameters)
    });
}

#[test]
fn a_server_behind_a_local_socket_that_answers_without_end_is_given_up() {
    let mut victim = Victim::new("hlocalflood");
    victim.local = true;
    victim.survives("sends notices", "08007", |wire| {
        begin(wire)?;
        wire.flood(&notice())
    });
    victim.survives("sends notifications", "08007", |wire| {
        begin(wire)?;
        let notification = [&PID.to_be_bytes()[..], &text("channel"), &text("payload")].concat();
        wire.flood(&message(b'A', &notification))
    });
    victim.survives("sends parameters", "08007", |wire| {
        begin(wire)?;
        wire.flood_by(small_parameters)
    });
}
