package virtq_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// The device's side of a tracked ring runs in a separate process, one machine instruction at a
// time. After each instruction that changed the used ring or the in-flight region, a copy of both
// is checked as the state that a successor would find if the process were killed there. At some of
// these points the process is killed.

// stepEnv makes the test binary the stepped process. Its value is the seed, the ring's size, that
// of the in-flight region, and whether event indexes are used.
const stepEnv = "COWBLK_TEST_STEPPED"

const (
	stepGPA    = 0x1000
	stepMemory = 0x1000
	stepRegion = unix.SIGUSR1 // the process is about to process the ring
)

func init() {
	if os.Getenv(stepEnv) != "" {
		runtime.LockOSThread() // the first thread is stepped
	}
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(stepEnv); spec != "" {
		if err := stepped(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// stepped is the process: guest memory is descriptor 3, the in-flight buffer 4. It runs until it is
// killed.
func stepped(spec string) error {
	var seed uint64
	var cfg virtq.SplitConfig
	if _, err := fmt.Sscan(spec, &seed, &cfg.Num, &cfg.InflightNum, &cfg.EventIdx); err != nil {
		return err
	}
	mem, err := virtqtest.OpenMemory([]int{3}, virtqtest.Layout(stepGPA, stepMemory)...)
	if err != nil {
		return err
	}
	ring, err := virtqtest.NewRing(mem, cfg.Num, stepGPA)
	if err != nil {
		return err
	}
	table, err := mem.Table()
	if err != nil {
		return err
	}
	if cfg.Desc, cfg.Avail, cfg.Used, err = mapRing(table, mem, ring); err != nil {
		return err
	}
	if cfg.Inflight, err = unix.Mmap(4, 0, virtq.InflightSize(cfg.InflightNum),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	cfg.Base = ring.UsedIdx()
	random := rand.New(rand.NewPCG(seed, 0))
	pid, tid := uintptr(unix.Getpid()), uintptr(unix.Gettid())
	// pause stops the process for the stepping one. The system call is raw, because the scheduler's
	// work around it would be stepped through, too.
	pause := func() { unix.RawSyscall(unix.SYS_TGKILL, pid, tid, uintptr(stepRegion)) }
	pause()
	q, err := virtq.NewSplit(cfg)
	if err != nil {
		return err
	}
	var held []uint16
	for {
		q.SuppressKicks()
		for range random.IntN(int(cfg.Num)) {
			head, ok, err := q.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			held = append(held, head)
		}
		for range random.IntN(len(held) + 1) {
			i := random.IntN(len(held))
			q.Push(held[i], 1)
			held = slices.Delete(held, i, i+1)
		}
		q.Publish()
		q.EnableKicks()
		pause()
	}
}

func mapRing(t *guest.Table, mem *virtqtest.Memory, r *virtqtest.Ring) (desc, avail, used []byte,
	err error) {
	return virtq.MapSplit(t, r.Num, mem.User(r.Desc), mem.User(r.Avail), mem.User(r.Used))
}

// stepRoundsEnv sets the rounds that each ring is stepped through; default: 8.
const stepRoundsEnv = "COWBLK_STEP_ROUNDS"

// However short a process lives, the next one finds the requests in flight.
func TestKilledAfterEveryStore(t *testing.T) {
	rounds := 8
	if s := os.Getenv(stepRoundsEnv); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", stepRoundsEnv, err)
		}
	}
	for i, cfg := range []virtq.SplitConfig{
		{Num: 8, InflightNum: 8, Base: 0},
		{Num: 8, InflightNum: 16, Base: 65530, EventIdx: true},
		{Num: 1, InflightNum: 1, Base: 65535},
		{Num: 16, InflightNum: 16, Base: 65500, EventIdx: true},
	} {
		t.Run(fmt.Sprintf("%d of %d from %d", cfg.Num, cfg.InflightNum, cfg.Base),
			func(t *testing.T) {
				runtime.LockOSThread() // ptrace belongs to a thread
				defer runtime.UnlockOSThread()
				s := newStepper(t, uint64(i), cfg)
				defer s.pin()()
				s.start()
				for range rounds {
					s.drive()
					if s.step(50) {
						s.drive()
						s.start()
					}
				}
				s.kill()
				t.Logf("%d instructions, %d of them stores, each checked; killed %d times", s.steps,
					s.points, s.kills)
				if s.points < rounds {
					t.Error("too few stores for a test")
				}
			})
	}
}
