//go:build linux

package ways

import (
	"context"
	"path/filepath"
)

// startRelays starts two relays in a chain: what any tunnel of this shape costs
// at least, two processes and a connection between them.
func (s *Setup) startRelays(ctx context.Context, secure bool) (*Way, error) {
	name, far, near := "relay", []string(nil), []string(nil)
	if secure {
		files := []string{filepath.Join(s.group.Dir, "relay.crt"), filepath.Join(s.group.Dir, "relay.key")}
		if err := writeCertificate(files[0], files[1]); err != nil {
			return nil, err
		}
		name, far, near = "relay-tls", []string{"-listen-tls", files[0] + "," + files[1]}, []string{"-dial-tls"}
	}
	device, between, err := s.self(ctx, s.deviceHost(), name+"-device",
		append(append([]string{"relay"}, far...), s.deviceAddr()+":0", s.service)...)
	if err != nil {
		return nil, err
	}
	edge, addr, err := s.self(ctx, s.edgeHost(), name+"-edge",
		append(append([]string{"relay"}, near...), s.edgeAddr()+":0", between)...)
	if err != nil {
		return nil, err
	}
	return &Way{TCP: s.target(addr), Edge: []int{edge.PID()}, Device: []int{device.PID()}}, nil
}
