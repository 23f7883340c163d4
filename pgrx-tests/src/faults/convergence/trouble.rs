//! A link that is slow, breaks, is silent or refuses, one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::faults::dice::Dice;
use crate::proxy::{Direction, Proxy};

/// Makes trouble until then, and puts all of it right; how often.
pub fn run(proxy: &Proxy, dice: &mut Dice, end: Instant) -> Result<u64> {
    let (mut times, mut result) = (0, Ok(()));
    while result.is_ok() && Instant::now() < end {
        // Long enough for sessions to connect, and later for delivery at commit to come back.
        dice.pause(200, 1000);
        result = trouble(proxy, dice);
        times += 1;
        let longest = *dice.pick(&[2, 2, 10, 30]);
        proxy.set_delay(dice.millis(1, longest));
    }
    proxy.set_delay(Duration::ZERO);
    proxy.cut_after(u64::MAX, Direction::ToServer);
    proxy.thaw();
    proxy.accept()?;
    result.map(|()| times)
}

fn trouble(proxy: &Proxy, dice: &mut Dice) -> Result<()> {
    match dice.roll(8) {
        0 => proxy.cut(),
        // Somewhere in a delivery: before, while and after it commits.
        1 | 2 => proxy.cut_after(dice.roll(4000), Direction::ToServer),
        3 | 4 => proxy.cut_after(dice.roll(1500), Direction::ToClient),
        5 => {
            proxy.refuse();
            proxy.cut();
            dice.pause(50, 500);
            proxy.accept()?;
        }
        silence => {
            proxy.freeze();
            // Seldom beyond the delivery timeout.
            match dice.chance(15) {
                true => dice.pause(2100, 2500),
                false => dice.pause(50, 600),
            }
            // What was held back is lost, or arrives late.
            if silence == 6 {
                proxy.cut();
            }
            proxy.thaw();
        }
    }
    Ok(())
}
