// Package store keeps images and disks by name in one directory.
//
// # Layout
//
//	STORE/lock                     flock: whoever changes the store holds it exclusively
//	STORE/images/NAME/image.json   what the image is (Image)
//	STORE/images/NAME/data         its content, raw, sparse, read-only
//	STORE/layers/UUID/{map,data}   one layer; which disks use it is in their manifests
//	STORE/layers/UUID/sums         checksums of the data of a layer whose map and data lie elsewhere
//	STORE/disks/NAME/disk.json     the disk's manifest (Manifest)
//	STORE/disks/NAME/lock          flock: whoever has the disk open holds it exclusively; its content says who serves it
//	STORE/tmp/UUID/                work in progress of one process
//	STORE/tmp/rm-UUID/             a disk or image that has been removed, and what goes with it
//	STORE/index/disks              what unchanged manifests name: a cache, see manifest_index.go
//	STORE/reserve/                 files that are given up when the file system is full
//	STORE/run/                     sockets, of a store of one's own
//
// # Nothing half-made
//
// Everything is built under tmp and renamed into its place; the rename of a disk's directory (or the atomic
// replacement of its manifest) is the one step that makes a change true. Layers are renamed before the manifest that
// names them, so a crash in between leaves layers that nobody names: the work directory holds a list of them (its
// journal), and a work directory whose process is gone is found by its free flock and cleaned, list included, by the
// next command that changes the store, whether or not it can be known what of the list is still needed. A removal is the
// other way round: the disk's directory is renamed to tmp, and its layers follow. Nothing is ever deleted merely because it is not referenced: Check reports such
// layers, and removes those that hold something only if it is asked to.
//
// # Damage
//
// What is damaged is refused when it is opened, and whoever is refused can still look (Check) and, where a checksum or a
// count proves what was there, repair. check.go names what is looked at, layer.Repair what is proven.
//
// # Whom to believe
//
// Files are found by name, again and again, and documents name sockets and files. So nothing of a store is believed,
// opened or removed where somebody other than root and this user can change what is found (Store.Trusted, package way),
// and no socket is made there (Store.CheckRunDir). Such a store can be looked at: no process is asked then.
//
// # Locks
//
// The store's lock is held for the time of renames and manifest writes, never while content is copied, hashed or given
// back, and that time does not follow the number of disks, but for one stat of each by who deletes (disk_survey.go).
// Lock order: disk, then store. A process that has a disk open holds the disk's lock for as long.
// A promotion commits under the locks of its disks alone: the guest may be standing still.
//
// Every wait for a lock has a limit, and ends with its context. The store's lock is waited for in the kernel, which gives
// it in the order in which it was asked for. Whoever can open a lock file can hold it: files are 0600, directories 0700,
// those that others must pass 0711 (store_lock.go).
//
// The package starts no goroutine but those that wait for the store's lock (waiters).
package store
