//! Memory over the events of a trace, thinned out to what a picture can show.

/// The most of each quantity since the point before, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// How many events had happened.
    pub event: u64,
    pub requested: u64,
    pub allocated: u64,
    pub reserved: u64,
}

impl Point {
    /// Tells the parent.
    pub fn print(&self) {
        println!(
            "point {} {} {} {}",
            self.event, self.requested, self.allocated, self.reserved
        );
    }

    /// What was told.
    pub fn parse(text: &str) -> Option<Point> {
        let numbers: Option<Vec<u64>> = text.split(' ').map(|word| word.parse().ok()).collect();
        match numbers?[..] {
            [event, requested, allocated, reserved] => Some(Point {
                event,
                requested,
                allocated,
                reserved,
            }),
            _ => None,
        }
    }
}

/// Gathers points.
pub struct Points {
    every: u64,
    most: Point,
}

impl Points {
    /// About `count` points for so many events.
    pub fn new(count: usize, events: usize) -> Points {
        Points {
            every: (events / count.max(1)).max(1) as u64,
            most: Point::default(),
        }
    }

    /// Takes in how things stand after an event; a point, where it is time for one.
    pub fn add(&mut self, now: Point, is_last: bool) -> Option<Point> {
        let most = &mut self.most;
        most.event = now.event;
        most.requested = most.requested.max(now.requested);
        most.allocated = most.allocated.max(now.allocated);
        most.reserved = most.reserved.max(now.reserved);
        (is_last || now.event % self.every == 0).then(|| std::mem::take(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_holds_the_most_since_the_one_before() {
        let mut points = Points::new(2, 5);
        let now = |event, requested| Point {
            event,
            requested,
            allocated: 2 * requested,
            reserved: 9,
        };
        assert_eq!(points.add(now(1, 5), false), None);
        assert_eq!(
            points.add(now(2, 3), false),
            Some(Point {
                event: 2,
                ..now(0, 5)
            })
        );
        assert_eq!(points.add(now(3, 1), false), None);
        assert_eq!(points.add(now(4, 2), false), Some(now(4, 2)));
        assert_eq!(points.add(now(5, 0), true), Some(now(5, 0)));
    }

    #[test]
    fn what_is_told_is_heard() {
        let point = Point {
            event: 1,
            requested: 2,
            allocated: 3,
            reserved: 4,
        };
        assert_eq!(Point::parse("1 2 3 4"), Some(point));
        assert_eq!(Point::parse("1 2 3"), None);
        assert_eq!(Point::parse("1 2 3 x"), None);
    }
}
