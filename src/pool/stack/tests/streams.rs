//! Blocks that other streams use than the region's.

use super::*;

#[test]
fn another_stream_gets_its_own_and_closes_the_region_where_it_is_named() {
    let (arena, upstream) = with_region(4096);
    let other = other_stream();
    let spilled = arena.allocate(NUMBER, 100, stack::ALIGN, other).unwrap();
    assert_eq!(stats(&arena).spilled.now, 1);
    arena.deallocate(NUMBER, spilled, None, other).1.unwrap();

    let (below, block) = (take(&arena, 100).unwrap(), take(&arena, 100).unwrap());
    arena.record_stream(NUMBER, block, OWN).unwrap();
    assert!(lock(&upstream.books).recorded.is_empty());
    arena.deallocate(NUMBER, block, Some(100), other).1.unwrap();
    assert_eq!(lock(&upstream.books).recorded, [(below, other)]);
    let next = take(&arena, 100).unwrap();
    assert_eq!(stats(&arena).spilled.now, 1, "nothing more in that region");
    give(&arena, next, None).unwrap();
    give(&arena, below, None).unwrap();
    arena.iter(NUMBER, OWN).unwrap();
    let again = take(&arena, 100).unwrap();
    assert_eq!(stats(&arena).spilled.now, 0);
    give(&arena, again, None).unwrap();

    arena.forget_stream(NUMBER, OWN);
    let spills = stats(&arena).spilled.added;
    let after = take(&arena, 100).unwrap();
    assert_eq!(stats(&arena).spilled.added, spills + 1);
    give(&arena, after, None).unwrap();
    arena.iter(NUMBER, other).unwrap();
    let of_other = arena.allocate(NUMBER, 1, stack::ALIGN, other).unwrap();
    assert_eq!(stats(&arena).spilled.now, 0);
    arena
        .deallocate(NUMBER, of_other, Some(1), other)
        .1
        .unwrap();
    assert_eq!(
        arena
            .record_stream(NUMBER, of_other, other)
            .unwrap_err()
            .status(),
        Status::NotOwned
    );
}

#[test]
fn what_upstream_cannot_be_told_is_waited_for() {
    let upstream = Arc::new(Fake {
        is_deaf: true,
        ..Fake::default()
    });
    lock(&upstream.books).room = 1 << 40;
    let arena = Arena::new();
    arena.begin(NUMBER, upstream.clone());
    let spilled = take(&arena, 4096).unwrap();
    give(&arena, spilled, None).unwrap();
    arena.iter(NUMBER, OWN).unwrap();
    let (block, other) = (take(&arena, 100).unwrap(), other_stream());
    {
        let mut books = lock(&upstream.books);
        books.fails_at = Some(books.calls + 1);
    }
    arena.deallocate(NUMBER, block, None, other).1.unwrap_err();
    assert_eq!(stats(&arena).blocks.now, 1);
    arena.deallocate(NUMBER, block, None, other).1.unwrap();
    assert_eq!(lock(&upstream.books).waited_for, [other]);
    // The region goes on: all its work is done.
    assert_eq!(take(&arena, 100).unwrap(), block);
    assert_eq!(stats(&arena).spilled.now, 0);
    // Later work cannot be waited for.
    arena.record_stream(NUMBER, block, other).unwrap_err();
    give(&arena, block, None).unwrap();
    arena.end(NUMBER).unwrap();
}
