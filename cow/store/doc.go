// Package store keeps images and disks by name in one directory.
//
// # Layout
//
//	STORE/lock                     flock: held exclusively by a process that changes the store
//	STORE/images/NAME/image.json   description of the image (Image)
//	STORE/images/NAME/data         its content, raw, sparse, read-only
//	STORE/layers/UUID/{map,data}   one layer; the manifests name the layers of each disk
//	STORE/layers/UUID/sums         checksums of a layer whose map and data lie outside the store
//	STORE/disks/NAME/disk.json     the disk's manifest (Manifest)
//	STORE/disks/NAME/lock          flock: held exclusively by the process that has the disk open;
//	                               the content says how the disk is served (Serving)
//	STORE/tmp/UUID/                transaction of one process
//	STORE/tmp/rm-UUID/             removed disk or image with its layers
//	STORE/index/disks              cache of what the manifests name, see manifest_index.go
//	STORE/reserve/                 files that are removed when the file system is full
//	STORE/run/                     sockets, unless the store is the default one
//
// # Transactions
//
// A change is built in a directory under tmp/ and renamed to its place. One step makes it visible:
// the rename of a disk's directory, or the atomic replacement of its manifest. Layers are renamed
// before the manifest that names them, so a crash in between leaves unnamed layers. The journal of
// the transaction lists them. The flock of its directory is free once its process is dead, and the
// next command that changes the store then finishes or undoes the transaction. A removal goes the
// other way: the disk's directory is renamed to tmp/, and its layers follow. A missing reference
// alone never removes a layer: Check reports unnamed layers, and removes one with data only on
// request.
//
// # Damage
//
// A damaged file is refused when it is opened. Check still examines it, and repairs it where a
// checksum or a count proves the content. check.go lists the checks, layer.Repair the proofs.
//
// # Trust
//
// Files are found by name, and documents contain the paths of sockets and files. So a store in
// which a user other than root and this one can replace files is refused (Store.Trusted, package
// way), and no socket is created in such a run directory (Store.CheckRunDir). Listing such a store
// is allowed, but no process is contacted.
//
// # Locks
//
// The store's lock is held for renames and manifest writes, never while content is copied, hashed
// or freed. The number of system calls does not depend on the number of disks: a removal compares
// the versions of all manifests with the index by one io_uring (survey.go). Lock order: disk, then
// store. A process holds a disk's lock as long as it has the disk open. The commit of a promotion
// takes only the locks of its disks: the guest may be quiesced.
//
// Every wait for a lock has a limit and ends with its context. The kernel grants the store's lock
// in the order of requests. A user that can open a lock file can hold it: files are 0600,
// directories 0700, and directories that other users must traverse 0711 (store_lock.go).
//
// The only goroutines of the package wait for the store's lock (waiters).
//
// # Rooms
//
// Files of one room know each other. Arrows point to what a room uses; each may use what is right
// of it or below, and all use the last line.
//
//	check*.go          ──► every room below
//	promote pending    ──► open
//	rollback           ──► users ──► txn
//	remove*            ──► open, users, txn
//	create* import     ──► files: whose bytes are they (owners, store_files)
//	                   ──► txn
//	tree               ──► open
//
//	open               open, open_tag, open_files, disk_lock, serving*, access, trust_base,
//	                   quiesce_record, legacy_live_file, system_use
//	users              which disks need a layer or an image: survey*, manifest_index;
//	                   layer_release moves the others out
//	txn                journal and recovery: txn*, change (several disks at once), read_only
//	trust              trusted_path, trusted_files, recognize_store
//	places             run_dir, memory_dir, reserve
//	objects            manifest, image, base, usage
//	store              store, store_lock, name, document, errors, not_directory
//
// Four arrows go up: store takes its lock through trust, places and serving; txn releases layers
// through users; txn makes the lock file of a new disk (open); trust recognizes files of the
// reserve (places), which asks trust for the run directory.
//
// Image files before their import are the subject of package imagefile, a device-mapper table of
// package dmtable.
package store
