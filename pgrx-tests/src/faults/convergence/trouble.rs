//! A link that is slow, breaks, is silent or refuses, one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::proxy::{Direction, Proxy};
use crate::rng::Rng;

/// Makes trouble until then, and puts all of it right; how often.
pub fn run(proxy: &Proxy, rng: &mut Rng, end: Instant) -> Result<u64> {
    let mut times = 0;
    let mut result = Ok(());
    while result.is_ok() && Instant::now() < end {
        // Long enough for sessions to connect, and later for delivery at commit to come back.
        rng.pause(200, 1000);
        result = trouble(proxy, rng);
        times += 1;
        let longest = *rng.pick(&[2, 2, 10, 30]);
        proxy.set_delay(rng.millis(1, longest));
    }
    proxy.set_delay(Duration::ZERO);
    proxy.cut_after(u64::MAX, Direction::ToServer);
    proxy.thaw();
    proxy.accept()?;
    result.map(|()| times)
}

fn trouble(proxy: &Proxy, rng: &mut Rng) -> Result<()> {
    match rng.roll(8) {
        0 => proxy.cut(),
        // Somewhere in a delivery: before, while and after it commits.
        1 | 2 => proxy.cut_after(rng.roll(4000), Direction::ToServer),
        3 | 4 => proxy.cut_after(rng.roll(1500), Direction::ToClient),
        5 => {
            proxy.refuse();
            proxy.cut();
            rng.pause(50, 500);
            proxy.accept()?;
        }
        silence => {
            proxy.freeze();
            // Seldom beyond the delivery timeout.
            if rng.chance(15) {
                rng.pause(2100, 2500)
            } else {
                rng.pause(50, 600)
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
