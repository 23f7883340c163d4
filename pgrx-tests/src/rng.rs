//! Reproducible chance, for all random tests.

use std::thread::sleep;
use std::time::Duration;

/// A generator that gives the same numbers for the same seed (xorshift64 behind splitmix64).
pub struct Rng(u64);

impl Rng {
    /// Seeds that differ in one bit, and streams of one seed, have nothing in common.
    pub fn new(seed: u64, stream: u64) -> Rng {
        let mixed = mix(mix(seed).wrapping_add(stream));
        // Zero is the one state that xorshift never leaves.
        Rng(mixed.max(1))
    }

    /// For tests that have but one stream: their seeds are known to meet what they are to meet.
    pub fn of_seed(seed: u64) -> Rng {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            rng.roll(2);
        }
        rng
    }

    /// 0 to `sides` - 1.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }

    /// True that many times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    /// One of them; there must be one.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }

    /// As [`Rng::pick`], by value.
    pub fn of<T: Copy>(&mut self, from: &[T]) -> T {
        *self.pick(from)
    }

    /// A time between two numbers of milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.roll(to - from + 1))
    }

    /// Lets such a time pass, so that what follows meets any phase of what runs meanwhile.
    pub fn pause(&mut self, from: u64, to: u64) {
        sleep(self.millis(from, to));
    }
}

/// The finaliser of splitmix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
