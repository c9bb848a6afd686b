// Package backend is the device of one disk and its queues: it joins the vhost-user session of a
// front-end to the copy-on-write engine. The whole path of a request is in worker.go; read it from
// (*worker).batch down. The process around the devices is package backend/daemon, of which this
// package knows nothing.
//
// # Goroutines
//
// Every goroutine of a device, who starts it, what it owns, how it ends (backend/daemon has those
// of the process):
//
//	goroutine           started by             owns                                ends
//	session             caller of Serve        the connection, ring set-up         front-end disconnects, or a malformed message
//	kick check          a worker's first kick  nothing; it may warn                its two seconds are over, or the session ends
//	worker, one a ring  Device.StartQueue      ring, slots, cow.Channel, its fds   Device.StopQueue, after its last request completed
//	flusher, one a disk cow.Open               flush rounds of the disk            cow.Disk.Close
//	flush timer         cow.Channel            nothing; it asks for a round        a flush round begins, or cow.Disk.Close
//	thread pool, ≤ 64   cow.Channel.Submit     a request that would block a worker idle, or cow.Disk.Close
//
// A worker is locked to its thread. No request has a goroutine of its own.
//
// A process may be killed at any moment. The in-flight buffer, which the front-end keeps, has what
// each ring had in flight; the next process that starts the ring executes it first (vhost/virtq).
// Completed writes are in the kernel (cow.Options.SharedDir).
//
// The driver decides whether a write is durable when it completes, as far as it has negotiated
// FLUSH or CONFIG_WCE: see write_cache.go.
//
// The session changes a running worker only by (*worker).runScheduledAndWait, which runs a function
// between two batches on the worker's goroutine. So rings, slots and file descriptors need no lock.
//
// # Hostile guests and front-ends
//
// Everything that a guest or its front-end can write is read once and copied; the copy is checked
// and used. A violation breaks the queue (error eventfd, DEVICE_NEEDS_RESET in GET_STATUS) or
// closes the connection. Violations are counted, and logged within limits (package loglimit).
//
//	what                             checked by                   when it is wrong
//	message header, size, number of  vhost: checkHeader, handle,  connection closed before the payload
//	descriptors, pieces              Conn.readMessage             is read; descriptors closed
//	payload fields, ring index       vhost: handlers, payload     refused with an answer, or closed
//	eventfds                         vhost: checkEventFD          refused: only eventfds cannot make us
//	                                                              wait; see also worker.unblockEventfds
//	regions, their files             guest: fits, CheckFile       refused: overlaps, overflow, beyond the
//	                                                              file, files whose pages may never come
//	address space and mappings       guest.Space                  refused beyond 16 TiB or 1,024 mappings
//	ring size, place, alignment      virtq: MapSplit              start refused
//	used index at the start          queue.go, under touch        any value is good; a fault refuses
//	in-flight region                 vhost, virtq: track          refused, or the start fails
//	available index, heads           virtq: Next                  queue broken
//	descriptors, indirect tables     virtq: walk, each copied     queue broken: loops, bounds, direction,
//	                                                              more than 2,048 pieces or 4 GiB
//	request header, segments         blk: Parse, from copies      status IOERR or UNSUPP; no header or
//	                                                              no status: queue broken
//	memory that was there and is not SetPanicOnFault, EFAULT      queue broken, or the request IOERR
//	memory table replaced            pin: a request keeps its own  -
//	requests of a ring in flight     a slot each; maxWide         the ring waits
//
// Tests: hostile_named_test.go has the cases by name, hostile_memory_test.go memory that
// disappears, hostile_eventfd_test.go descriptors, hostile_limits_test.go the traces of a million
// violations. hostile_ringfuzz_test.go and hostile_streamfuzz_test.go fuzz a live queue and a live
// session, with a healthy disk beside them: TestHostileRing and TestHostileFrontend run for
// COWBLK_FUZZ_SECONDS seconds each (60) and at least COWBLK_FUZZ_EXECS executions (0), from
// COWBLK_FUZZ_SEED; FuzzHostileRing and FuzzHostileFrontend are guided by coverage. "make fuzz"
// runs both forms.
package backend
