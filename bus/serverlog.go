package bus

import (
	"fmt"

	"github.com/rs/zerolog"
)

// serverLog hands the server's messages to zerolog.
type serverLog struct {
	log zerolog.Logger
	// fatal takes the first reason why the server cannot run; capacity 1.
	fatal chan error
}

// Noticef is told at every start and stop in many lines; only debugging wants them.
func (l serverLog) Noticef(format string, v ...any) { l.log.Debug().Msgf(format, v...) }

func (l serverLog) Warnf(format string, v ...any) { l.log.Warn().Msgf(format, v...) }

func (l serverLog) Errorf(format string, v ...any) { l.log.Error().Msgf(format, v...) }

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
