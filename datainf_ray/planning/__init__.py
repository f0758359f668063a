"""What a run will take, and how large its portions are: functions of the request and of the room that there is."""
