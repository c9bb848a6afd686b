// Package daemon is a process that serves disks. Serve does all of it: it opens the disks, makes or
// takes over the sockets, offers each disk as a backend.Device, answers commands on control
// sockets, promotes, watches space, and hands the disks to the next process or closes them. Open,
// Daemon.Run and Daemon.Close are its steps. ExportTags serves tags over NBD, without a Daemon.
//
// Serve and Open change the process: they ignore SIGPIPE, Serve gives SIGQUIT to Go's runtime, and
// Options.Sandbox confines the process for good.
//
// # Goroutines
//
// Every goroutine of the process besides those of its devices (package backend), who starts it,
// what it owns, how it ends:
//
//	goroutine           started by           owns                                ends
//	Run                 Daemon.Start         nothing: cowblk run waits for QEMU  Run returns
//	accept, one a disk  Export.Run           the listening socket, the Device    its context is done
//	watch pending       Export.session       the front-end that waits            the session ends
//	control             Daemon.Run           control socket and its clients      control.Server.Close
//	NBD                 nbd-server-start     NBD sockets and their clients       nbd-server-stop, or the exports have ended
//	seal watcher        Daemon.promote       nothing; it reports the sealing     the former head is sealed
//	thaw                Daemon.Run           a guest left frozen or paused       the guest runs, or two minutes have passed
//	hooks               Daemon.Run           the effects of QEMU's events        the exports have ended
//	QEMU's monitor      Daemon.Run           the connection that hooks listen to  Run returns
//	space monitor       Daemon.Run           file systems, requests parked for   the exports have ended
//	                                         want of space, the paused guest
//	checksummer         Daemon.Run           layers that get checksums           the exports have ended
//	NBD takeover        Daemon.Run           the exports of the old process      they are served again
//
// # Failures of dependencies
//
// What a serving process does when something that it depends on fails, and the test of it (cmd: in
// cmd/cowblk):
//
//	failure                                  behaviour                                                         test
//	disk takes seconds to answer a write     its queue waits; other queues, disks and commands do not          TestSlowDiskHoldsUpItsQueueOnly
//	... a sync                               flushes wait; reads and writes of the same queue do not           TestSlowSyncHoldsUpFlushesOnly
//	... during a promotion                   the swap of heads does not wait; sealing does                     TestPromotionOfASlowDisk
//	... at SIGTERM                           the process ends after the last request, or at the second signal  cmd TestStopWhileADiskDoesNotAnswer
//	store does not answer in a promotion     the promotion waits, the guest does not                           TestPromotionWhileTheStoreDoesNotAnswer
//	QEMU's monitor or the agent hangs        the promotion ends at its time limit, complete or without effect; TestGuestHangsDuringPromotion
//	                                         the guest is thawed as soon as the peer answers: by this process
//	                                         for two minutes, then by the next one
//	... at SIGTERM                           the process ends within that limit; the next one thaws the guest  TestStopWhileTheAgentHangs
//	... cannot be reached                    the promotion is refused at once and leaves no record             cmd TestUnreachableGuestLeavesNoRecord
//	... has ended or was restarted           its record is removed                                             TestRecordOfEndedGuestRemoved
//	"cowblk run" or its QEMU is killed       the other one ends                                                cmd TestRunTakesQEMUWithIt, TestQEMUTakesRunWithIt
//	standard output is lost                  the command fails, even if it has done its work                   cmd TestLostOutput
//	QEMU's monitor sends garbage             memory and log are bounded; disks are served and promoted         TestGarbageFromMonitors
//	the clock is set                         no wait depends on it; at worst there is one extra tag            TestHooksWhenTheClockIsSet, integration/lint
//	no file descriptors are left             a promotion is refused before it begins; front-ends wait or are   cmd TestOutOfDescriptors
//	                                         disconnected, and served when descriptors are free
//	more layers than descriptors             refused with advice; nothing is changed                           cmd TestMoreLayersThanDescriptors
//	file system is full or almost full       commands that create fail without a trace; the guest reads,       cmd TestStoreOnAFullFileSystem
//	                                         overwrites and flushes
//	data of a sealed layer is damaged        reads fail and emit an event, and never return wrong data; a      cmd TestDamagedDataIsNeverServed
//	                                         write of the whole block repairs it for that disk
//	many processes start for one disk        one serves it, under whatever name of the store; after a kill     cmd TestManyStartsOfOneDisk, TestTwoStoresOneLayer
//	                                         the disk is free at once
//	store is removed, moved or replaced      the guest continues on open files; promotions are refused         cmd TestStoreRemovedUnderneath
//	foreign code runs in the process         it reaches only the store's files and executes nothing            cmd TestServeConfined, backend/sandbox
//	                                         (--sandbox)
//
// If a store is removed under a running disk, the data exists only in open files. Do not create
// anything in its place. Copy the disk from within the guest to another one ("cowblk attach" adds
// it) before the process ends.
package daemon
