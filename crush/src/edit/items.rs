//! Devices and buckets: added, moved, removed, reweighted.

use super::{DEVICE_WEIGHT_MAX, Draft, DraftBucket, EditError};
use crate::map::{DEVICE_ID_MAX, Device, MapError, check_name};

/// One `TYPE=NAME` of a location, looked up.
struct Place {
    bucket_type: u32,
    name: String,
}

impl Draft {
    /// Adds a device of a 16.16 weight at a location: `TYPE=NAME` of the buckets that hold it, in any order.
    /// Buckets that do not exist yet are made (straw2) below the first that does.
    ///
    /// The id is `id`, or the N of a name `osd.N`, or that of a declared device that is in no bucket.
    pub fn add_device(
        &mut self,
        name: &str,
        id: Option<i32>,
        weight: u32,
        class: Option<&str>,
        location: &[String],
    ) -> Result<(), EditError> {
        check_name(name)?;
        check_device_weight(weight)?;
        let id = self.new_device_id(name, id)?;
        if let Some(parent) = self.parents(id).first() {
            let (name, parent) = (name.to_owned(), self.item_name(*parent));
            return Err(EditError::AlreadyPlaced { name, parent });
        }
        let class = class.map(|class| self.class_number(class)).transpose()?;
        let device = self.devices.entry(id).or_insert_with(|| Device { name: name.to_owned(), class });
        device.class = class.or(device.class);
        self.place(id, weight, location)
    }

    /// Adds an empty straw2 bucket of a type, at a location or, without one, as a root.
    pub fn add_bucket(&mut self, name: &str, type_name: &str, location: &[String]) -> Result<(), EditError> {
        let bucket_type = self.type_id(type_name)?;
        if bucket_type == 0 {
            return Err(EditError::Map(MapError::BucketOfDeviceType(name.to_owned())));
        }
        let id = self.new_bucket(name, bucket_type)?;
        if location.is_empty() { Ok(()) } else { self.place(id, 0, location) }
    }

    /// Moves a device or a bucket with all below it, weight kept, to a location. One that is there already stays
    /// where it is in the order of items.
    pub fn move_item(&mut self, name: &str, location: &[String]) -> Result<(), EditError> {
        let id = self.known_item(name)?;
        let held = self.parents(id).first().map(|parent| self.weight_in(*parent, id));
        let weight = match held {
            Some(weight) => weight,
            None if id >= 0 => return Err(EditError::NotPlaced(name.to_owned())),
            None => self.buckets.get(&id).map_or(0, DraftBucket::weight),
        };
        let target = self.places(id, location)?.swap_remove(0);
        let target = self.item_id(&target.name);
        let there_already = location.len() == 1 && target.is_some_and(|target| self.parents(id) == [target]);
        if there_already {
            return Ok(());
        }
        self.detach(id);
        self.place(id, weight, location)
    }

    /// Removes a device, or a bucket that holds nothing and that no rule takes from.
    pub fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let id = self.known_item(name)?;
        if let Some(rule) = self.rule_taking(id) {
            return Err(EditError::InUse { name: name.to_owned(), rule });
        }
        if let Some(bucket) = self.buckets.get(&id).filter(|bucket| !bucket.items.is_empty()) {
            return Err(EditError::NotEmpty { name: name.to_owned(), count: bucket.items.len() });
        }
        self.detach(id);
        self.devices.remove(&id);
        self.buckets.remove(&id);
        self.shadow_ids.remove(&id);
        for args in self.choose_args.values_mut() {
            args.remove(&id);
        }
        Ok(())
    }

    /// Gives a device a new 16.16 weight in every bucket that holds it; with `subtree`, every device below a
    /// bucket. In a uniform bucket all items get it.
    pub fn reweight(&mut self, name: &str, weight: u32, subtree: bool) -> Result<(), EditError> {
        check_device_weight(weight)?;
        let id = self.known_item(name)?;
        if id < 0 && !subtree {
            return Err(EditError::BucketWeight(name.to_owned()));
        }
        if id >= 0 && self.parents(id).is_empty() {
            return Err(EditError::NotPlaced(name.to_owned()));
        }
        for device in self.devices_below(id) {
            for parent in self.parents(device) {
                self.set_weight(parent, device, weight);
                self.update_ancestors(parent);
            }
        }
        Ok(())
    }

    /// Makes every bucket weigh what its items weigh, from the devices up.
    pub fn reweight_all(&mut self) {
        let mut holders: Vec<i32> = Vec::new();
        for (id, bucket) in &self.buckets {
            if bucket.items.iter().all(|(item, _)| *item >= 0) {
                holders.push(*id);
            }
        }
        // From each lowest bucket up; one that mixes devices and buckets is reached from below.
        for holder in holders {
            self.update_ancestors(holder);
        }
    }

    fn new_device_id(&self, name: &str, id: Option<i32>) -> Result<i32, EditError> {
        let declared = self.item_id(name);
        if declared.is_some_and(|declared| declared < 0) {
            return Err(EditError::NameTaken(name.to_owned()));
        }
        let from_name = || name.strip_prefix("osd.").and_then(|number| number.parse().ok());
        let id = id.or(declared).or_else(from_name);
        let id = id.ok_or_else(|| EditError::NoDeviceId(name.to_owned()))?;
        if !(0..=DEVICE_ID_MAX).contains(&id) {
            return Err(EditError::Map(MapError::BadDeviceId(id)));
        }
        if declared.is_some_and(|declared| declared != id) {
            return Err(EditError::NameTaken(name.to_owned()));
        }
        match self.devices.get(&id) {
            Some(other) if other.name != name => {
                Err(EditError::DeviceIdTaken { id, name: other.name.clone() })
            }
            _ => Ok(id),
        }
    }

    /// A new empty bucket, with the greatest free id as `crushtool` gives it.
    fn new_bucket(&mut self, name: &str, bucket_type: u32) -> Result<i32, EditError> {
        check_name(name)?;
        if self.item_id(name).is_some() {
            return Err(EditError::NameTaken(name.to_owned()));
        }
        let reserved = |id: &i32| self.shadow_ids.values().any(|ids| ids.values().any(|other| other == id));
        let id = (i32::MIN..0).rev().find(|id| !self.buckets.contains_key(id) && !reserved(id));
        let id = id.expect("a map has fewer than 2^31 buckets");
        let bucket = DraftBucket {
            name: name.to_owned(),
            bucket_type,
            algorithm: "straw2",
            hash: 0,
            items: Vec::new(),
        };
        self.buckets.insert(id, bucket);
        Ok(id)
    }

    /// Puts an item that is in no bucket at a location, and lets its new ancestors weigh more.
    fn place(&mut self, item: i32, weight: u32, location: &[String]) -> Result<(), EditError> {
        let places = self.places(item, location)?;
        let mut current = item;
        let mut weight = weight;
        for (index, place) in places.iter().enumerate() {
            let Some(bucket) = self.item_id(&place.name) else {
                let bucket = self.new_bucket(&place.name, place.bucket_type)?;
                self.attach(bucket, current, weight);
                weight = self.buckets[&bucket].weight();
                current = bucket;
                continue;
            };
            self.check_place(bucket, place, item)?;
            for above in &places[index + 1..] {
                let found = self.item_id(&above.name).filter(|above| self.is_below(bucket, *above));
                if found.is_none() {
                    let wanted = format!("{}={}", self.type_name(above.bucket_type), above.name);
                    return Err(EditError::NotBelow { lower: place.name.clone(), wanted });
                }
            }
            self.attach(bucket, current, weight);
            self.update_ancestors(bucket);
            return Ok(());
        }
        self.update_ancestors(current);
        Ok(())
    }

    /// The location, lowest type first.
    fn places(&self, item: i32, location: &[String]) -> Result<Vec<Place>, EditError> {
        let mut places: Vec<Place> = Vec::new();
        for text in location {
            let parts = text.split_once('=').filter(|(kind, name)| !kind.is_empty() && !name.is_empty());
            let (kind, name) = parts.ok_or_else(|| EditError::BadLocation(text.clone()))?;
            let bucket_type = self.type_id(kind)?;
            if places.iter().any(|place| place.bucket_type == bucket_type) {
                return Err(EditError::LocationTypeTwice(kind.to_owned()));
            }
            if bucket_type <= self.item_type(item) {
                let item_type = self.type_name(self.item_type(item));
                let (container, name) = (kind.to_owned(), self.item_name(item));
                return Err(EditError::TypesDoNotRise { container, name, item: item_type });
            }
            places.push(Place { bucket_type, name: name.to_owned() });
        }
        places.sort_by_key(|place| place.bucket_type);
        match places.is_empty() {
            true => Err(EditError::NoLocation(self.item_name(item))),
            false => Ok(places),
        }
    }

    fn check_place(&self, bucket: i32, place: &Place, item: i32) -> Result<(), EditError> {
        let actual = self.item_type(bucket);
        if bucket >= 0 || actual != place.bucket_type {
            let (actual, wanted) = (self.type_name(actual), self.type_name(place.bucket_type));
            return Err(EditError::WrongType { name: place.name.clone(), actual, wanted });
        }
        if self.is_below(bucket, item) {
            return Err(EditError::Cycle { name: place.name.clone(), target: self.item_name(item) });
        }
        Ok(())
    }

    /// A device itself, or the devices below a bucket.
    fn devices_below(&self, item: i32) -> Vec<i32> {
        match self.buckets.get(&item) {
            None => vec![item],
            Some(bucket) => bucket.items.iter().flat_map(|(child, _)| self.devices_below(*child)).collect(),
        }
    }

    fn weight_in(&self, bucket: i32, item: i32) -> u32 {
        let items = self.buckets.get(&bucket).map(|bucket| bucket.items.as_slice()).unwrap_or_default();
        items.iter().find(|(other, _)| *other == item).map_or(0, |(_, weight)| *weight)
    }

    fn class_number(&mut self, class: &str) -> Result<u32, EditError> {
        check_name(class)?;
        if let Some(known) = self.classes.iter().position(|other| other == class) {
            return Ok(known as u32);
        }
        self.classes.push(class.to_owned());
        Ok(self.classes.len() as u32 - 1)
    }
}

fn check_device_weight(weight: u32) -> Result<(), EditError> {
    if weight > DEVICE_WEIGHT_MAX { Err(EditError::WeightTooLarge) } else { Ok(()) }
}
