//! A space against a model that knows the bytes in use one unit at a time.

use super::*;
use proptest::prelude::*;

const GRANULE: u64 = 4096;
const RANGE: u64 = 64 * GRANULE;
const BASE: u64 = 1 << 30;

fn space() -> Space {
    space_that_fits(Fit::Best)
}

fn space_that_fits(fit: Fit) -> Space {
    let mut space = Space::new(Align::new(GRANULE).unwrap(), fit);
    space.add_range(BASE, RANGE);
    space
}

fn align(bytes: u64) -> Align {
    Align::new(bytes).unwrap()
}

/// Backs what a window misses in places of one granule each.
fn backed(window: &Window) -> Vec<(u64, u64)> {
    let granules = |(address, bytes): &(u64, u64)| {
        let count = bytes / GRANULE;
        let address = *address;
        (0..count).map(move |index| (address + index * GRANULE, GRANULE))
    };
    window.missing.iter().flat_map(granules).collect()
}

fn grow(space: &mut Space, bytes: u64, color: Color) -> Given {
    let window = space.plan(bytes, align(UNIT), color).unwrap();
    let places = backed(&window);
    space.complete(window, places, color, 0)
}

#[test]
fn free_pieces_beside_blocks_are_stuck() {
    let mut space = Space::new(align(4 * UNIT), Fit::Best);
    space.add_backed_range(0x10000, 4 * UNIT, Color(1));
    space.add_backed_range(0x90000, 4 * UNIT, Color(1));
    assert_eq!(space.stuck_pieces(), 0);
    let block = space.allocate(UNIT, align(UNIT), Color(1)).unwrap();
    assert_eq!((space.stuck_pieces(), space.free_places().len()), (1, 1));
    space.free(block.piece, Color(1), 1);
    assert_eq!((space.stuck_pieces(), space.free_places().len()), (0, 2));
}

#[test]
fn a_window_begins_in_the_free_rest_of_a_place() {
    let mut space = space();
    let color = Color(1);
    assert!(space.allocate(UNIT, align(UNIT), color).is_none());
    let first = grow(&mut space, UNIT, color);
    assert_eq!((first.address, space.backed()), (BASE, GRANULE));
    let second = grow(&mut space, GRANULE, color);
    assert_eq!((second.address, space.backed()), (BASE + UNIT, 2 * GRANULE));
    space.audit().unwrap();
    space.free(first.piece, color, 0);
    space.free(second.piece, color, 0);
    space.audit().unwrap();
    let free = space.free_places();
    assert_eq!(free.len(), 2);
    assert!(free.iter().all(|place| place.piece_bytes == 2 * GRANULE));
}

#[test]
fn a_place_taken_leaves_a_hole_that_is_filled_again() {
    let mut space = space();
    let color = Color(1);
    let blocks: Vec<Given> = (0..3).map(|_| grow(&mut space, GRANULE, color)).collect();
    space.free(blocks[1].piece, color, 3);
    assert!(!space.take_place(blocks[0].address, Color(1), Epoch::MAX));
    let place = space.free_places()[0];
    assert!(space.take_place(place.address, place.color, place.epoch));
    assert!(space.allocate(UNIT, align(UNIT), color).is_none());
    space.audit().unwrap();
    space.give_back_place(place.address);
    assert!(space.take_place(place.address, place.color, place.epoch));
    space.place_gone(place.address);
    space.audit().unwrap();
    let window = space.plan(GRANULE, align(UNIT), color).unwrap();
    assert_eq!(window.missing, [(blocks[1].address, GRANULE)]);
    space.abandon(window, [], color, 4);
    space.audit().unwrap();
    assert_eq!(grow(&mut space, GRANULE, color).address, blocks[1].address);
}

#[test]
fn a_place_that_was_used_since_it_was_seen_free_is_not_taken() {
    let mut space = space();
    let (one, two) = (Color(1), Color(2));
    let block = grow(&mut space, GRANULE, one);
    space.free(block.piece, one, 1);
    let coloured = space.free_places()[0];
    space.settle(one, 1);
    let neutral = space.free_places()[0];
    let used = space.allocate(GRANULE, align(UNIT), two).unwrap();
    space.free(used.piece, two, 2);
    for seen in [coloured, neutral] {
        assert!(!space.take_place(seen.address, seen.color, seen.epoch));
    }
    let used = space.allocate(GRANULE, align(UNIT), two).unwrap();
    let seen = space.free_places();
    assert!(seen.is_empty());
    space.free(used.piece, two, 5);
    assert!(!space.take_place(used.address, two, 4));
    assert!(space.take_place(used.address, two, 5));
    space.audit().unwrap();
}

#[test]
fn colours_keep_apart_until_they_are_settled() {
    let mut space = space();
    let (one, two) = (Color(1), Color(2));
    let block = grow(&mut space, 2 * GRANULE, one);
    space.free(block.piece, one, 5);
    assert!(space.allocate(UNIT, align(UNIT), two).is_none());
    assert_eq!(space.settle(one, 4), 0);
    assert!(space.allocate(UNIT, align(UNIT), two).is_none());
    space.settle(one, 5);
    let given = space.allocate(UNIT, align(UNIT), two).unwrap();
    assert_eq!(given.address, block.address);
    // Free for two, and beside it what is everybody's: together they hold a block.
    space.free(given.piece, two, 6);
    assert!(space.allocate(2 * GRANULE, align(UNIT), two).is_none());
    let window = space.plan(2 * GRANULE, align(UNIT), two).unwrap();
    assert_eq!((window.address, window.missing_bytes()), (block.address, 0));
    space.complete(window, [], two, 7);
    space.audit().unwrap();
}

#[test]
fn joined_memory_is_done_when_the_last_of_it_is() {
    for (first, second) in [(5, 3), (3, 5)] {
        let mut space = Space::new(align(4 * UNIT), Fit::Best);
        space.add_backed_range(0x10000, 4 * UNIT, Color(1));
        let give = |space: &mut Space| space.allocate(2 * UNIT, align(UNIT), Color(1)).unwrap();
        let blocks = [give(&mut space), give(&mut space)];
        space.free(blocks[0].piece, Color(1), first);
        space.free(blocks[1].piece, Color(1), second);
        space.settle(Color(1), 4);
        assert!(space.allocate(UNIT, align(UNIT), Color(2)).is_none());
        space.settle(Color(1), 5);
        assert!(space.allocate(4 * UNIT, align(UNIT), Color(2)).is_some());
    }
}

#[test]
fn more_of_the_hole_can_be_had() {
    let mut space = space();
    let color = Color(1);
    let mut window = space.plan(UNIT, align(UNIT), color).unwrap();
    assert_eq!(window.room, RANGE - GRANULE);
    space.extend(&mut window, 2 * GRANULE);
    assert_eq!(window.missing, [(BASE, 3 * GRANULE)]);
    assert_eq!(window.room, RANGE - 3 * GRANULE);
    let given = space.complete(window, [(BASE, 3 * GRANULE)], color, 0);
    space.audit().unwrap();
    assert_eq!((given.address, space.used()), (BASE, UNIT));
    assert!(space.free_places().is_empty());
    space.free(given.piece, color, 0);
    assert_eq!(space.free_places()[0].bytes, 3 * GRANULE);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { units: u64, align: u32, color: u16 },
    Free { which: usize },
    Settle { color: u16 },
    Take { which: usize, keep: bool },
    Abandon { units: u64, backed: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..40, 9u32..14, 1u16..4).prop_map(|(units, align, color)| Step::Allocate { units, align, color }),
        4 => any::<usize>().prop_map(|which| Step::Free { which }),
        1 => (1u16..4).prop_map(|color| Step::Settle { color }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, keep)| Step::Take { which, keep }),
        1 => (1u64..40, any::<bool>()).prop_map(|(units, backed)| Step::Abandon { units, backed }),
    ]
}

proptest! {
    #[test]
    fn blocks_never_overlap_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..120), by_size in any::<bool>()) {
        let mut space = space_that_fits(if by_size { Fit::Best } else { Fit::Lowest });
        let mut live: Vec<(Given, u64, Color)> = Vec::new();
        let mut epoch = 0;
        for step in steps {
            epoch += 1;
            match step {
                Step::Allocate { units, align: shift, color } => {
                    let (bytes, align, color) = (units * UNIT, align(1 << shift), Color(color));
                    let given = space.allocate(bytes, align, color).or_else(|| {
                        let window = space.plan(bytes, align, color)?;
                        let places = backed(&window);
                        Some(space.complete(window, places, color, epoch))
                    });
                    let Some(given) = given else { continue };
                    prop_assert!(align.divides(given.address));
                    prop_assert_eq!(space.bytes_of(given.piece), bytes);
                    for (other, length, _) in &live {
                        prop_assert!(given.address + bytes <= other.address || other.address + length <= given.address);
                    }
                    live.push((given, bytes, color));
                }
                Step::Free { which } if !live.is_empty() => {
                    let (given, _, color) = live.swap_remove(which % live.len());
                    space.free(given.piece, color, epoch);
                }
                Step::Free { .. } => {}
                Step::Settle { color } => drop(space.settle(Color(color), epoch)),
                Step::Take { which, keep } => {
                    let free = space.free_places();
                    if free.is_empty() { continue }
                    let place = free[which % free.len()];
                    prop_assert!(space.take_place(place.address, place.color, place.epoch));
                    match keep {
                        true => space.give_back_place(place.address),
                        false => space.place_gone(place.address),
                    }
                }
                Step::Abandon { units, backed: some } => {
                    if let Some(window) = space.plan(units * UNIT, align(UNIT), Color(1)) {
                        let places = backed(&window);
                        let count = if some { places.len() / 2 } else { 0 };
                        space.abandon(window, places.into_iter().take(count), Color(2), epoch);
                    }
                }
            }
            prop_assert_eq!(space.audit(), Ok(()));
            prop_assert_eq!(space.used(), live.iter().map(|(_, bytes, _)| bytes).sum::<u64>());
        }
        for (given, _, color) in live {
            space.free(given.piece, color, epoch);
        }
        for color in 1..4 {
            space.settle(Color(color), epoch);
        }
        for place in space.free_places() {
            prop_assert!(space.take_place(place.address, place.color, place.epoch));
            space.place_gone(place.address);
        }
        prop_assert_eq!(space.audit(), Ok(()));
        prop_assert_eq!((space.backed(), space.used()), (0, 0));
    }
}

#[test]
fn memory_freed_while_its_place_dozes_serves_after_it_only() {
    let mut space = space();
    let color = Color(1);
    let blocks: Vec<Given> = (0..3)
        .map(|_| grow(&mut space, GRANULE / 2, color))
        .collect();
    assert_eq!(space.backed(), 2 * GRANULE);
    let dozing = space.doze(|_| false);
    assert_eq!(dozing, [(BASE, GRANULE), (BASE + GRANULE, GRANULE)]);
    assert_eq!((space.backed(), space.dozing_bytes()), (0, 2 * GRANULE));
    let live: Vec<u64> = (space.dozing_blocks().iter()).map(|(at, _)| *at).collect();
    assert_eq!(
        live,
        blocks.iter().map(|block| block.address).collect::<Vec<_>>()
    );
    assert!(space.allocate(UNIT, align(UNIT), color).is_none());
    space.free(blocks[0].piece, color, 1);
    assert!(space.allocate(UNIT, align(UNIT), color).is_none());
    space.audit().unwrap();
    // What is allocated meanwhile has a place of its own, and is not held back.
    let awake = grow(&mut space, UNIT, color);
    assert_eq!(awake.address, BASE + 2 * GRANULE);
    space.free(awake.piece, color, 2);
    assert!(space.allocate(UNIT, align(UNIT), color).is_some());
    // The first place has one block left, the second is dead.
    space.free(blocks[2].piece, color, 3);
    assert_eq!(space.take_dead_places(), [BASE + GRANULE]);
    space.audit().unwrap();
    space.wake();
    assert_eq!(space.dozing_bytes(), GRANULE);
    space.rouse(|_| false);
    space.wake();
    space.audit().unwrap();
    assert_eq!((space.dozing_bytes(), space.backed()), (0, 2 * GRANULE));
    let again = space.allocate(GRANULE / 2, align(UNIT), Color(7)).unwrap();
    assert_eq!(again.address, blocks[0].address);
}

#[test]
fn damage_to_any_field_of_any_piece_is_found() {
    let mut space = Space::new(align(UNIT), Fit::Best);
    space.add_backed_range(BASE, 64 * UNIT, Color::NEUTRAL);
    space.add_backed_range(2 * BASE, 64 * UNIT, Color::NEUTRAL);
    let blocks: Vec<Given> = (1..9)
        .map(|units| {
            let bytes = units * UNIT;
            space.allocate(bytes, align(UNIT), Color::NEUTRAL).unwrap()
        })
        .collect();
    for block in blocks.iter().step_by(2) {
        space.free(block.piece, Color::NEUTRAL, 0);
    }
    space.audit().unwrap();
    let pieces: Vec<u32> = space.pieces.iter().map(|(number, _)| number).collect();
    assert!(pieces.len() > 8);
    let mut damaged = 0;
    for piece in pieces {
        for field in 0..Space::FIELDS {
            for bit in 0..64 {
                if space.flip(piece, field, bit) {
                    assert!(
                        space.audit().is_err(),
                        "piece {piece} field {field} bit {bit}"
                    );
                    space.flip(piece, field, bit);
                    damaged += 1;
                }
            }
        }
        space.audit().unwrap();
    }
    assert!(damaged > 8 * 5 * 64);
}
