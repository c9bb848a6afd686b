package frontend

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/vhost/virtq"
)

var (
	// ErrTimeout reports that the device completed nothing within Options.Timeout.
	ErrTimeout = errors.New("the device did not answer in time")
	// ErrDisconnected reports that the back-end closed the connection.
	ErrDisconnected = errors.New("the back-end disconnected")
	// ErrQueueBroken reports that the back-end signalled the ring's error eventfd.
	ErrQueueBroken = errors.New("the back-end reported a broken ring")
)

// spins is how often a blocking driver polls the ring before it sleeps.
const spins = 1000

// Wait returns when there are completions for Poll, or with ErrTimeout, ErrDisconnected or
// ErrQueueBroken. It spins or sleeps on the call eventfd, see Options.Poll.
func (d *Driver) Wait() error {
	if len(d.stashed) > 0 {
		return nil
	}
	return d.waitRing()
}

// waitRing is Wait without the completions that were polled earlier.
func (d *Driver) waitRing() error {
	if d.ready() {
		return nil
	}
	if d.broken != nil {
		return d.broken
	}
	for range spins {
		if d.ready() {
			return nil
		}
	}
	now := time.Now()
	deadline := now.Add(d.f.opts.Timeout)
	for checked := now; ; {
		if d.f.opts.Poll {
			// Check the descriptors at intervals, without sleeping.
			if now = time.Now(); now.Sub(checked) > pollFDInterval {
				checked = now
				if err := d.sleep(0, deadline); err != nil {
					return err
				}
			}
		} else if err := d.block(deadline); err != nil {
			return err
		}
		for range spins {
			if d.ready() {
				return nil
			}
		}
	}
}

// pollFDInterval is the interval at which a polling driver checks its descriptors. More frequent
// system calls would delay completions.
const pollFDInterval = time.Millisecond

// block sleeps until a call, unless there is a completion already.
func (d *Driver) block(deadline time.Time) (err error) {
	d.enableCalls()
	if !d.ready() {
		err = d.sleep(time.Until(deadline), deadline)
	}
	d.suppressCalls()
	return err
}

func (d *Driver) ready() bool { return d.ring.UsedIdx() != d.last }

// sleep waits for the call eventfd, the error eventfd or the end of the connection.
func (d *Driver) sleep(t time.Duration, deadline time.Time) error {
	fds := &d.pollFDs
	fds[0] = unix.PollFd{Fd: int32(d.call), Events: unix.POLLIN}
	fds[1] = unix.PollFd{Fd: int32(d.err), Events: unix.POLLIN}
	fds[2] = unix.PollFd{Fd: int32(d.f.sockFD), Events: unix.POLLRDHUP}
	_, err := unix.Poll(fds[:], int(max(t, 0)/time.Millisecond))
	switch {
	case err != nil && !errors.Is(err, unix.EINTR):
		return fmt.Errorf("ring %d: poll: %w", d.index, err)
	case fds[0].Revents != 0:
		_, _ = eventfd.Drain(d.call)
	case d.ready():
	case fds[1].Revents != 0:
		_, _ = eventfd.Drain(d.err)
		return fmt.Errorf("ring %d: %w", d.index, ErrQueueBroken)
	case fds[2].Revents != 0:
		return fmt.Errorf("ring %d: %w", d.index, ErrDisconnected)
	case !time.Now().Before(deadline):
		return fmt.Errorf("ring %d: %d requests in flight after %v: %w", d.index, d.inFlight,
			d.f.opts.Timeout, ErrTimeout)
	}
	return nil
}

// CallPending returns and resets the number of signals on the call eventfd.
func (d *Driver) CallPending() uint64 {
	n, _ := eventfd.Drain(d.call)
	return n
}

// ErrPending reports and resets whether the back-end has signalled the error eventfd.
func (d *Driver) ErrPending() bool {
	n, _ := eventfd.Drain(d.err)
	return n > 0
}

// enableCalls requests a call at the next used element (virtio 1.2, 2.7.7).
func (d *Driver) enableCalls() {
	if d.eventIdx {
		d.ring.setUsedEvent(d.last)
		return
	}
	d.ring.setAvailFlags(0)
}

// suppressCalls requests no calls: with event indexes it names the farthest element.
func (d *Driver) suppressCalls() {
	if d.eventIdx {
		d.ring.setUsedEvent(d.last - 1)
		return
	}
	d.ring.setAvailFlags(virtq.AvailNoInterrupt)
}
