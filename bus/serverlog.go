package bus

import (
	"fmt"
	"strings"

	"github.com/rs/zerolog"
)

// serverLog hands the server's messages to zerolog.
type serverLog struct {
	log zerolog.Logger
	// fatal takes the first reason why the server cannot run; capacity 1.
	fatal chan error
	// broken takes the first write that the disk refused; capacity 1.
	broken chan error
}

// Noticef is told at every start and stop in many lines; only debugging wants them.
func (l serverLog) Noticef(format string, v ...any) { l.log.Debug().Msgf(format, v...) }

func (l serverLog) Warnf(format string, v ...any) { l.log.Warn().Msgf(format, v...) }

// storeFailed is how the server begins to tell of a write that the disk refused.
// It answers no such write, takes none for that stream until it is started
// anew, and says so nowhere else; a test fills a disk to hold the wording.
const storeFailed = "JetStream failed to store a msg on stream"

func (l serverLog) Errorf(format string, v ...any) {
	said := fmt.Errorf(format, v...)
	l.log.Error().Msg(said.Error())
	if strings.HasPrefix(said.Error(), storeFailed) {
		select {
		case l.broken <- said:
		default:
		}
	}
}

// Fatalf must not end the process, as the server's own logger does: StartServer
// returns the reason as an error.
func (l serverLog) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Errorf(format, v...):
	default:
		l.log.Error().Msgf(format, v...)
	}
}

func (l serverLog) Debugf(format string, v ...any) { l.log.Trace().Msgf(format, v...) }

func (l serverLog) Tracef(format string, v ...any) { l.log.Trace().Msgf(format, v...) }
