// Command cowblk serves stacks of copy-on-write layers to QEMU over vhost-user-blk, and manages
// them by name.
//
// Each sub-command has its file. A sub-command parses and prints; cow/store, backend/daemon and
// backend/client do the work. The process exits only in main; everything else returns an error, which exit.go maps to a
// documented exit code.
//
// COWBLK_KILL_CYCLES=2000 sets the number of kills in the test of a process that is killed under
// load; 2000 take some minutes.
//
// # Failures of dependencies
//
// What a serving process does when something that it depends on fails, and the test of it:
//
//	failure                                  behaviour                                                         test
//	disk takes seconds to answer a write     its queue waits; other queues, disks and commands do not          backend TestSlowDiskHoldsUpItsQueueOnly
//	... a sync                               flushes wait; reads and writes of the same queue do not           backend TestSlowSyncHoldsUpFlushesOnly
//	... during a promotion                   the swap of heads does not wait; sealing does                     backend TestPromotionOfASlowDisk
//	... at SIGTERM                           the process ends after the last request, or at the second signal  TestStopWhileADiskDoesNotAnswer
//	store does not answer in a promotion     the promotion waits, the guest does not                           TestPromotionWhileTheStoreDoesNotAnswer
//	QEMU's monitor or the agent hangs        the promotion ends at its time limit, complete or without effect; TestGuestHangsDuringPromotion
//	                                         the guest is thawed as soon as the peer answers: by this process
//	                                         for two minutes, then by the next one
//	... at SIGTERM                           the process ends within that limit; the next one thaws the guest  TestStopWhileTheAgentHangs
//	... cannot be reached                    the promotion is refused at once and leaves no record             TestUnreachableGuestLeavesNoRecord
//	... has ended or was restarted           its record is removed                                             TestRecordOfEndedGuestRemoved
//	"cowblk run" or its QEMU is killed       the other one ends                                                TestRunTakesQEMUWithIt, TestQEMUTakesRunWithIt
//	standard output is lost                  the command fails, even if it has done its work                   TestLostOutput
//	QEMU's monitor sends garbage             memory and log are bounded; disks are served and promoted         TestGarbageFromMonitors
//	the clock is set                         no wait depends on it; at worst there is one extra tag            backend TestHooksWhenTheClockIsSet, integration/lint
//	no file descriptors are left             a promotion is refused before it begins; front-ends wait or are   TestOutOfDescriptors
//	                                         disconnected, and served when descriptors are free
//	more layers than descriptors             refused with advice; nothing is changed                           TestMoreLayersThanDescriptors
//	file system is full or almost full       commands that create fail without a trace; the guest reads,       TestStoreOnAFullFileSystem
//	                                         overwrites and flushes
//	data of a sealed layer is damaged        reads fail and emit an event, and never return wrong data; a      TestDamagedDataIsNeverServed
//	                                         write of the whole block repairs it for that disk
//	many processes start for one disk        one serves it, under whatever name of the store; after a kill     TestManyStartsOfOneDisk, TestTwoStoresOneLayer
//	                                         the disk is free at once
//	store is removed, moved or replaced      the guest continues on open files; promotions are refused         TestStoreRemovedUnderneath
//	foreign code runs in the process         it reaches only the store's files and executes nothing            TestServeConfined, backend/sandbox
//	                                         (--sandbox)
//
// If a store is removed under a running disk, the data exists only in open files. Do not create
// anything in its place. Copy the disk from within the guest to another one ("cowblk attach" adds
// it) before the process ends.
package main
