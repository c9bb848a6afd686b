// Package crash tests whole stores with power cuts, killed processes and failing calls.
//
// # A life
//
// A Life carries a script (Step) out on a faultfs.Machine. It creates, serves, promotes, rolls back
// and removes disks through package store and package cow, as the programs do, and submits guests'
// requests. Depth says how many of them overlap in time. All goroutines of that process run in a
// testing/synctest bubble. Each of their calls on files waits for its turn, and a seed decides
// whose turn is next. So the same seed gives the same order of everything, and every order is
// possible.
//
// The machine's tape records all changes, and between them the player's notes: a write begins, a
// flush has succeeded, a promotion swaps.
//
// # A cut
//
// Examine plays a tape again, record by record. After every record, or after random ones, it cuts
// the power: it makes images of the states that a cut may leave (faultfs.Choice) and opens every
// disk and tag of each image through the real open path.
//
// The Oracle follows the notes. For each sector it knows the writes that may be its content: all
// writes that have begun, except those that ended before the begin of another write whose
// durability was acknowledged. For the store it knows the possible states: one, or two during a
// change (before and after it). A tag has the content of its disk at the swap. After its layer is
// sealed, it has exactly the content that was read then. An image must match one of the states in
// everything, and no half-made change may stay after the next command has cleaned up. A copy of
// some images, and of all machines that were killed or have lost their file system, is dismantled:
// its disks are removed one by one, beginning with any of them. The remaining disks must keep their
// content, and no layer may be left at the end.
//
// The death of the process alone loses nothing: every disk is read when it is opened, and must show
// all completed writes, flushed or not. The next process must be able to make them durable, which
// later cuts test.
//
// # Other ways to end
//
// The tape does not record stores of processes to mapped memory. So the player notes copies of the
// whole machine at random moments (Exam.Moments). At such a moment the process alone is killed: all
// completed writes must be there. And the file system is lost and mounted again in the same run of
// the machine, while memory stays: the oracle demands the same as after a power cut. A life of a
// Chain ends by a cut, by such a remount, or by a reboot. Before a reboot all pending changes reach
// the disk, after an orderly close of all disks or after a kill.
//
// # Other processes and faults
//
// Besides the guest's requests, random scripts have:
//
//   - readers in other processes, which prevent the sealing of former heads and outlive the server
//     (hold, release), or read a disk between two servers (peek)
//   - kills within an open, a close, a takeover or a change of the store (kill N), and between the
//     swap of a promotion and its end (kill swapped)
//   - opens and changes of the store of which one call fails (open-fault, fault)
//   - a file system without space, the store's or the one in memory (full)
//   - a program of a version before shared maps (older), and changes by a version without the index
//     of manifests (version)
//   - disks that are detached for a process that does not open them at once (detach), and time for
//     background flushes (sleep)
//   - imports of a raw file and of a chain of one to three qcow2 files (import), and removals of
//     images, which are refused while a disk lies on them (remove)
//   - stops in order (stop)
//   - damaged manifests, also of served disks, and disks that are removed as damaged or whose
//     manifest is restored (damage, remove-damaged, mend)
//   - a base that another process has locked (lock-base, open NAME share)
//   - a file system with little or no space (room), on which the reserve of the store is used and
//     made again, and the promises of README.md must hold
//
// An error is accepted if the script has made a call fail that causes it. The completed writes must
// be there after the error too, unless the failed call was a sync. TestRandom prints how often each
// has happened.
//
// The disks are too small for pages of a shared map to be released: TestReleaseBesideAdd of package
// layer tests that.
//
// # Tests
//
//   - TestEveryBoundary: scenarios of every operation, cut after every record.
//   - TestKilledThenServedThenCut: operations that are killed, then served by another process, then
//     cut.
//   - TestRandom: Chains of random lives. Each begins with the state that a cut has left. A failure
//     is minimised to a short script.
//   - TestRefusedOpen: a script continues without the steps that a kill has prevented.
//   - TestEveryCallFails: every call on a file fails once, in every way.
//   - TestBitFlips, TestJunk: damage to every file.
//
// The tests have a short form, which always runs, and a long form. COWBLK_CRASH_CUTS is the number
// of random cuts (make crash: a million); it also makes the other tests complete. COWBLK_CRASH_SEED
// repeats a run of TestRandom.
package crash
