package compare

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/vhost/frontend"
)

const mib = 1 << 20

// makeBase writes a raw image of random bytes and reads it into the page cache.
func makeBase(ctx context.Context, path string, size int64) error {
	if err := writeRandom(ctx, path, size); err != nil {
		return err
	}
	if err := dropCache(path); err != nil {
		return err
	}
	return readAll(ctx, path, size)
}

func writeRandom(ctx context.Context, path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	source := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, mib)
	for off := int64(0); off < size; off += mib {
		if err := ctx.Err(); err != nil {
			return err
		}
		source.Read(buf)
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

// dropCache evicts a synced file from the page cache.
func dropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("%s: dropping it from the page cache: %w", path, err)
	}
	return nil
}

// readAll reads the first size bytes of a file into the page cache.
func readAll(ctx context.Context, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, mib)
	for off := int64(0); off < size; off += mib {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.ReadAt(buf[:min(mib, size-off)], off); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// makeSparse makes an empty sparse file of size bytes.
func makeSparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// connect connects a front-end and turns the write cache on.
func connect(socket string) (*frontend.Frontend, error) {
	f, err := frontend.Dial(socket, frontend.Options{Timeout: patience, Memory: 16 * mib,
		Poll: true})
	if err != nil {
		return nil, err
	}
	if err := f.SetConfig(configWCE, []byte{1}); err != nil {
		f.Abort()
		return nil, err
	}
	return f, nil
}

// configWCE is the offset of writeback in the configuration space (virtio 1.2, 5.2.4).
const configWCE = 32

// extent is a part of a disk, in bytes.
type extent struct{ offset, length int64 }

// fill writes random bytes to extents of a served disk, in order, and flushes.
func fill(ctx context.Context, socket string, extents ...extent) (err error) {
	f, err := connect(socket)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	d := f.Driver(0)
	source := rand.NewChaCha8([32]byte{2})
	buf := make([]byte, mib)
	for _, x := range extents {
		for done := int64(0); done < x.length; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(mib, x.length-done)]
			source.Read(part)
			if _, err := d.WriteAt(part, x.offset+done); err != nil {
				return err
			}
			done += int64(len(part))
		}
	}
	return d.Flush()
}

// readServed reads all of a served disk.
func readServed(ctx context.Context, socket string) (err error) {
	f, err := frontend.Dial(socket, frontend.Options{Timeout: patience, Memory: 16 * mib,
		Poll: true})
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	buf := make([]byte, mib)
	for off := int64(0); off < f.Capacity(); off += mib {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.Driver(0).ReadAt(buf[:min(mib, f.Capacity()-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// flush makes a server's writes durable, so that their write-back does not disturb the next
// contender.
func flush(socket string) error {
	f, err := connect(socket)
	if err != nil {
		return err
	}
	if err := f.Driver(0).Flush(); err != nil {
		f.Abort()
		return err
	}
	return f.Close()
}

// Every layer between base and head owns a few extents, spread over the disk.
const (
	extentsPerLayer = 4
	extentLength    = 64 << 10 // the cluster size of qcow2
	extentPlaces    = 512
)

// layerExtents returns the extents of the n-th layer, from 1 to 127. No two layers share a place.
func layerExtents(n int, size int64) (all []extent) {
	for i := range extentsPerLayer {
		// A multiplication by an odd factor visits every place once.
		place := int64((n*extentsPerLayer + i) * 7919 % extentPlaces)
		all = append(all, extent{offset: size / extentPlaces * place &^ (extentLength - 1),
			length: extentLength})
	}
	return all
}
