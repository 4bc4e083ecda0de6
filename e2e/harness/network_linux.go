package harness

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// do calls f with the calling thread in the host's namespace.
func (h *Host) do(f func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open("/run/netns/" + h.ns)
	if err != nil {
		return err
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("namespace %s: %w", h.ns, err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // this thread would take others' sockets along
		}
	}()
	f()
	return nil
}

// openTUN makes a network interface on the host whose packets are read from, and
// written to, the file.
func openTUN(h *Host, name string) (f *os.File, err error) {
	failed := h.do(func() { f, err = openTUNHere(name) }) // the namespace is that of the open
	if err = errors.Join(failed, err); err != nil {
		return nil, fmt.Errorf("interface %s of %s: %w", name, h.Name, err)
	}
	return f, nil
}

func openTUNHere(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tun "+name), nil // not before: only now can it be polled
}

// carry moves packets from one end of a cable to the other, each after delay. Its
// goroutines end when both ends are closed; wg counts them.
func carry(wg *sync.WaitGroup, from, to *os.File, delay time.Duration) {
	type packet struct {
		due   time.Time
		bytes []byte
	}
	under := make(chan packet, 8192) // way more than a window of TCP here
	wg.Go(func() {
		defer close(under)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case under <- packet{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
			default: // a full queue drops, as routers do
			}
		}
	})
	wg.Go(func() {
		for p := range under {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.bytes) // an interface that is down drops
		}
	})
}
