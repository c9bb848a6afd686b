// Package backend is the process: it joins the vhost-user session of a front-end
// to the copy-on-write engine. One request's whole path is in worker.go; read it
// from (*worker).batch down.
//
// # Goroutines
//
// Every goroutine of a serving process, who starts it, what it owns, how it ends:
//
//	goroutine           started by           owns                                ends
//	accept, one a disk  Export.Run           the listening socket, the Device    its context is done
//	session             runs on accept       the connection, ring set-up         front-end disconnects, or a malformed message
//	worker, one a ring  Device.StartQueue    ring, slots, cow.Channel, its fds   Device.StopQueue, after its last request completed
//	flusher, one a disk cow.Open             flush rounds of the disk            cow.Disk.Close
//	crew, ≤ 32 a disk   cow.Channel.Submit   a request that would make a worker wait  too little to do, or cow.Disk.Close
//	control             Daemon.Run           control socket and its clients      control.Server.Close
//	NBD                 nbd-server-start     NBD sockets and their clients       nbd-server-stop, or the exports have ended
//	seal watcher        Daemon.promote       nothing; it tells when it is sealed  the former head is sealed
//	release             Daemon.Run           a guest left frozen or paused        it goes on, or two minutes have passed
//	hooks               Daemon.Run           what QEMU's events have led to       the exports have ended
//	QEMU's monitor      Daemon.Run           the connection that hooks listen to  Run returns
//	space               Daemon.Run           which file systems are low           the exports have ended
//	shortages           Daemon.Run           requests parked for want of space    the exports have ended
//	NBD's inheritance   Daemon.Run           what the process before has shown    it is shown again
//
// A worker is locked to its thread. No request has a goroutine of its own.
//
// A process may be killed at any moment. What each ring had in flight is in the
// in-flight buffer that its front-end keeps, and comes first when the next process
// starts the ring (vhost/virtq); what had completed is in the kernel (cow.Options.Live).
//
// The session changes a running worker only through (*worker).do, which runs a
// function between two batches on the worker's own goroutine: rings, slots and
// file descriptors therefore need no lock.
package backend
