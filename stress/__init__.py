"""The stress programme: what strangers' files, full disks, kills and odd numbers do to the pipeline."""
