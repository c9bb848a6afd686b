package virtq_test

import (
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
)

// complete processes n chains on the device's side and publishes them.
func complete(t *testing.T, r *rig, n int) (notify bool) {
	t.Helper()
	for range n {
		r.add(t, writable(dataAddr, 1))
	}
	var c virtq.Chain
	for range n {
		r.take(t, &c)
		r.q.Push(c.Head, 1)
	}
	notify = r.q.Publish()
	for range n {
		if _, _, ok := r.drv.Take(); !ok {
			t.Fatal("an element is missing")
		}
	}
	return notify
}

func TestPublishObeysTheFlag(t *testing.T) {
	r := newRig(t, virtq.SplitConfig{Num: 8})
	if r.q.Publish() {
		t.Error("a call for nothing")
	}
	for range 20 {
		r.drv.SuppressCalls()
		if complete(t, r, 3) {
			t.Fatal("a call in spite of NO_INTERRUPT")
		}
		if r.drv.EnableCalls() {
			t.Fatal("pending, but all was taken")
		}
		if !complete(t, r, 3) {
			t.Fatal("no call")
		}
	}
}

func TestPublishObeysTheEventIndex(t *testing.T) {
	for _, base := range []uint16{0, 0xfff8} {
		r := newRig(t, virtq.SplitConfig{Num: 8, EventIdx: true, Base: base})
		r.drv.SetUsedEvent(base - 100)
		if !complete(t, r, 1) {
			t.Error("no call for the first batch after a start, which may stand for a lost one")
		}
		// The flag has no meaning with EVENT_IDX (2.7.7.2).
		r.drv.SetAvailFlags(virtq.AvailNoInterrupt)
		for i, tc := range []struct {
			event uint16 // used index after which a call is wanted, from base
			n     int
			want  bool
		}{
			{1, 1, true}, {2, 1, true}, {3, 1, true}, // each one, from index 1
			{6, 1, false}, {6, 1, false}, {6, 1, true}, // every third
			{9, 4, true}, {14, 3, false}, // inside the batch; just behind it
			{14, 1, true}, {14, 1, false},
			{14, 8, false}, // passed already
		} {
			r.drv.SetUsedEvent(base + tc.event)
			if got := complete(t, r, tc.n); got != tc.want {
				t.Errorf("base %d, step %d: call %v, expected %v", base, i, got, tc.want)
			}
		}
		if r.drv.UsedFlags() != 0 {
			t.Errorf("flags %d, must be 0 with EVENT_IDX", r.drv.UsedFlags())
		}
	}
}

func TestKickSuppression(t *testing.T) {
	for _, event := range []bool{false, true} {
		r := newRig(t, virtq.SplitConfig{Num: 64, EventIdx: event, Base: 0xfff0})
		add := func() (kick bool) {
			test.Must(t, test.Err(r.drv.Add(writable(dataAddr, 1))))
			return r.drv.Expose()
		}
		if r.q.EnableKicks() {
			t.Errorf("event %v: pending on an empty ring", event)
		}
		if !add() {
			t.Errorf("event %v: no kick for the chain that was waited for", event)
		}
		r.q.SuppressKicks()
		for i := range 20 {
			if add() {
				t.Errorf("event %v: kick for chain %d while suppressed", event, i)
			}
		}
		if !r.q.EnableKicks() {
			t.Errorf("event %v: 21 chains are not pending", event)
		}
		for range 21 {
			if _, ok, err := r.q.Next(); !ok || err != nil {
				t.Fatalf("event %v: %v, error %v", event, ok, err)
			}
		}
		if r.q.EnableKicks() {
			t.Errorf("event %v: pending after all was taken", event)
		}
		if !add() {
			t.Errorf("event %v: no kick after enabling again", event)
		}
		if got := r.drv.UsedIdx(); got != 0xfff0 {
			t.Errorf("event %v: used index %d changed without a Publish", event, got)
		}
	}
}

// Both sides, in two goroutines, sleep whenever they may. If "store mine, then load the other's"
// were in the wrong order on either side, one would sleep for ever.
func TestNoWakeUpIsLost(t *testing.T) {
	for _, event := range []bool{false, true} {
		r := newRig(t, virtq.SplitConfig{Num: 2, EventIdx: event})
		const total = 120000
		kick, call := make(chan struct{}, 1), make(chan struct{}, 1)
		wake := func(c chan struct{}) {
			select {
			case c <- struct{}{}:
			default:
			}
		}
		failed := make(chan string, 2)
		wait := func(c chan struct{}, who string) bool {
			select {
			case <-c:
				return true
			case <-time.After(20 * time.Second): // reached only in case of a defect
				failed <- who + " was not woken"
				return false
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			var c virtq.Chain
			for served := 0; served < total; {
				head, ok, err := r.q.Next()
				if err != nil {
					failed <- err.Error()
					return
				}
				if !ok {
					if r.q.Publish() {
						wake(call)
					}
					if !r.q.EnableKicks() && !wait(kick, "device") {
						return
					}
					r.q.SuppressKicks()
					continue
				}
				c.Head = head
				if err := r.q.Load(r.table, &c); err != nil {
					failed <- err.Error()
					return
				}
				r.q.Push(head, uint32(c.WriteLen))
				served++
			}
			if r.q.Publish() {
				wake(call)
			}
		}()
		for sent, taken := 0, 0; taken < total; {
			for sent < total && r.drv.Free() > 0 {
				test.Must(t, test.Err(r.drv.Add(writable(dataAddr, 7))))
				sent++
				// A little later each time, to hit all of the device's steps.
				for range sent % 97 {
					r.drv.UsedFlags()
				}
				if r.drv.Expose() {
					wake(kick)
				}
			}
			if _, n, ok := r.drv.Take(); ok {
				if n != 7 {
					t.Fatalf("%d bytes, expected 7", n)
				}
				taken++
				continue
			}
			if r.drv.Err != nil {
				t.Fatal(r.drv.Err)
			}
			if !r.drv.EnableCalls() && !wait(call, "driver") {
				break
			}
			r.drv.SuppressCalls()
		}
		<-done
		close(failed)
		for msg := range failed {
			t.Errorf("event %v: %s", event, msg)
		}
	}
}
