"""The packaged models and the Hub: what is on this machine, and what is out there."""
